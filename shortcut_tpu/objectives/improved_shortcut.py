"""Improved shortcut models: guidance as a condition and a target average of their own."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from shortcut_tpu import samplers
from shortcut_tpu.objectives import base, rows
from shortcut_tpu.objectives.shortcut import losses_by_level, rotating_grids, step_size


@dataclasses.dataclass(frozen=True)
class ImprovedShortcut(base.Objective):
    """Shortcut, told a guidance strength w that only the finest step learns from the data.

        flow rows       || s(x_t, t, 1/M, w) - sg[w (x_1 - x_0) + (1 - w) v_null] ||^2
        bootstrap rows  || s(x_t, t, 2d, w) - sg[(s(x_t, t, d, w) + s(x', t + d, d, w)) / 2] ||^2

    with v_null = s(x_t, t, 1/M, 1) without a label and x' = x_t + d s(x_t, t, d, w).

    The coarser steps take over the finest one's guidance at the same w, so that it can neither
    compound nor be fixed before training ends. The network is told 1 - 1/w. Targets come from an
    average of the weights that is much faster than the one for evaluation.

    Source: "Improved Training Technique for Shortcut Models" (iSM, arXiv 2510.21250; its intrinsic
    guidance and twin averages, with w drawn as in iMF). Its wavelet loss and its transport-paired
    noise are left out.

    Attributes:
      finest_steps: M; step sizes are 1, 1/2, ..., 1/M.
      bootstrap_share: a unit fraction; every (1/share)-th row is a bootstrap row. The levels take
        turns on them, row by row and step by step.
      clip: bound on x' and on the bootstrap target; 0 for none.
      max_guidance: w = exp(U log max_guidance) with uniform U; 1 for none.
      sample_guidance: the strength that samples are conditioned on.
      label_dropout: on flow rows; a row without a label learns x_1 - x_0 at every w.
      target_ema: the average of the weights that makes the targets (paper: decay 0.95, against
        0.9999 for evaluation).
      sigma_min: noise left at t = 1.
    """

    name: ClassVar[str] = "improved_shortcut"
    conditions: ClassVar[tuple[str, ...]] = ("guidance",)

    finest_steps: int = 128
    bootstrap_share: float = 0.25
    clip: float = 4.0
    max_guidance: float = 8.0
    sample_guidance: float = 1.0
    label_dropout: float = 0.1
    target_ema: str = "target"
    sigma_min: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            "sample_guidance",
            self.sample_guidance <= self.max_guidance,
            f"at most max_guidance={self.max_guidance}",
        )

    @property
    def row_stride(self) -> int:
        return round(1 / self.bootstrap_share)

    @property
    def ema_names(self) -> tuple[str, ...]:
        return (self.target_ema,) if self.target_ema else ()

    def flow_targets(
        self,
        inputs: base.Inputs,
        xt: jax.Array,
        t: jax.Array,
        v: jax.Array,
        labels: jax.Array,
        told: jax.Array,
    ) -> jax.Array:
        """Guided velocities [n, H, W, C] for v = x_1 - x_0 and told = 1 - 1/w [n]."""
        if self.max_guidance == 1:
            return v
        params, null = (
            base.frozen(inputs, self.target_ema),
            jnp.full_like(labels, inputs.null_label),
        )
        finest = jnp.full_like(t, 1 / self.finest_steps)
        v_null = inputs.apply(params, xt, t, finest, null, guidance=jnp.zeros_like(told))
        w = base.along_rows(1 / (1 - told), v)
        has_label = base.along_rows(base.has_label(labels, inputs.null_label), v)
        return jax.lax.stop_gradient(jnp.where(has_label, w * v + (1 - w) * v_null, v))

    def bootstrap_targets(
        self,
        inputs: base.Inputs,
        xt: jax.Array,
        t: jax.Array,
        d: jax.Array,
        labels: jax.Array,
        told: jax.Array,
    ) -> jax.Array:
        """Targets [n, H, W, C] for steps of size d [n], from two half steps."""
        params, half = base.frozen(inputs, self.target_ema), d / 2
        v1 = inputs.apply(params, xt, t, half, labels, guidance=told)
        x_half = base.clipped(xt + base.along_rows(half, xt) * v1, self.clip)
        v2 = inputs.apply(params, x_half, t + half, half, labels, guidance=told)
        return jax.lax.stop_gradient(base.clipped((v1 + v2) / 2, self.clip))

    def loss(self, inputs: base.Inputs) -> tuple[jax.Array, base.Metrics]:
        noise_key, time_key, label_key, guidance_key = jax.random.split(inputs.key, 4)
        x1, num_rows, stride = inputs.x1, inputs.x1.shape[0], self.row_stride
        x0 = jax.random.normal(noise_key, x1.shape)

        grid = rotating_grids(num_rows, stride, self.finest_steps, inputs.step)
        t = jnp.floor(jax.random.uniform(time_key, (num_rows,)) * grid) / grid
        dropped = base.drop_labels(label_key, inputs.labels, self.label_dropout, inputs.null_label)
        labels = rows.put(dropped, stride, rows.take(inputs.labels, stride))
        told = 1 - self.max_guidance ** -jax.random.uniform(guidance_key, (num_rows,))

        xt, v = base.path(x0, x1, t, self.sigma_min), base.path_velocity(x0, x1, self.sigma_min)
        flow = (rows.rest(a, stride) for a in (xt, t, v, labels, told))
        boot = (rows.take(a, stride) for a in (xt, t, 1 / grid, labels, told))
        target = rows.merge(
            self.bootstrap_targets(inputs, *boot), self.flow_targets(inputs, *flow), stride
        )
        error = base.mean_square(
            inputs.apply(inputs.params, xt, t, 1 / grid, labels, guidance=told) - target
        )
        metrics = {
            "loss_flow": rows.rest(error, stride),
            "loss_bootstrap": rows.take(error, stride),
        }
        levels = jnp.round(jnp.log2(rows.take(grid, stride)))
        metrics |= losses_by_level(metrics["loss_bootstrap"], levels, self.finest_steps)
        return jnp.mean(error), metrics

    def sample(
        self,
        velocity: base.ConditionedFn,
        x0: jax.Array,
        labels: jax.Array,
        num_steps: int,
        keys: jax.Array,
    ) -> jax.Array:
        """Euler as in Shortcut, told the guidance of samples too."""
        told = jnp.full(len(x0), 1 - 1 / self.sample_guidance)

        def told_velocity(x: jax.Array, t: jax.Array, d: jax.Array, labels: jax.Array) -> jax.Array:
            return velocity(x, t, d, labels, guidance=told)

        d = step_size(num_steps, self.finest_steps)
        return samplers.euler(told_velocity, x0, labels, num_steps, d)

"""Improved shortcut models: guidance as a condition and a target average of their own."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from shortcut_tpu.array_types import Keys, Labels, Rows, Scalars
from shortcut_tpu.objectives import base, rows, told_guidance
from shortcut_tpu.objectives.shortcut import losses_by_level, rotating_grids, step_size
from shortcut_tpu.sampling import samplers


@dataclasses.dataclass(frozen=True)
class ImprovedShortcut(base.Objective):
    """Shortcut, told a guidance strength w that only the finest step learns from the data.

        plain rows      || s(x_t, t, 1/M, 1) - (x_1 - x_0) ||^2
        guided rows     || s(x_t, t, 1/M, w) - [x_1 - x_0 + (w' - 1) sg(s_c - s_null)] ||^2
        bootstrap rows  || s(x_t, t, 2d, w) - sg[(s(x_t, t, d, w) + s(x', t + d, d, w)) / 2] ||^2

    with s_c and s_null = s(x_t, t, 1/M, 1) with and without the label, w' = w for t in the interval
    and 1 elsewhere, and x' = x_t + d s(x_t, t, d, w). What guidance adds is a prediction: a target
    w (x_1 - x_0) + (1 - w) s_null has the same mean and w^2 times its noise. The loss is the sum of
    the three means.

    The coarser steps take over the finest one's guidance at the same w, so that it can neither
    compound nor be fixed before training ends. The network is told 1 - 1/w. Targets come from an
    average of the weights that is much faster than the one for evaluation.

    Source: "Improved Training Technique for Shortcut Models" (iSM, arXiv 2510.21250; its intrinsic
    guidance and twin averages), for which there is no code; t is taken for Shortcut's, 0 for noise.
    Its wavelet loss and its transport-paired noise are left out.

    Published recipe: Shortcut's, with averages .95 for targets and .9999 for evaluation.

    Attributes:
      finest_steps: M; step sizes are 1, 1/2, ..., 1/M.
      bootstrap_share: a unit fraction; every (1/share)-th row is a bootstrap row. The levels take
        turns on them, row by row and step by step. The others are plain and guided in turns.
      clip: bound on x' and on the bootstrap target; 0 for none.
      max_guidance: w is uniform between 1 and this (paper 4.5); 1 for none and no guided rows.
      guidance_interval: the times (start, end) that are guided (paper none below .3).
      sample_guidance: the strength that samples are conditioned on.
      label_dropout: on plain and guided rows; one without a label learns x_1 - x_0 at every w.
      target_ema: the average of the weights that makes the targets (paper: decay 0.95, against
        0.9999 for evaluation).
      sigma_min: noise left at t = 1.
    """

    name: ClassVar[str] = "improved_shortcut"
    conditions: ClassVar[tuple[str, ...]] = ("guidance",)

    finest_steps: int = 128
    bootstrap_share: float = 0.25
    clip: float = 4.0
    max_guidance: float = 4.5
    guidance_interval: tuple[float, float] = (0.3, 1.0)
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
        self.require(
            "guidance_interval",
            self.guidance_interval[0] < self.guidance_interval[1],
            "(start, end) with start before end",
        )

    @property
    def _stride(self) -> int:
        """Of the bootstrap rows."""
        return round(1 / self.bootstrap_share)

    @property
    def row_stride(self) -> int:
        # So that every device has as many guided rows as plain ones.
        return self._stride * (2 if self.max_guidance > 1 and self._stride % 2 == 0 else 1)

    @property
    def ema_names(self) -> tuple[str, ...]:
        return (self.target_ema,) if self.target_ema else ()

    def guided_targets(
        self,
        inputs: base.Inputs,
        xt: Rows,
        t: Scalars,
        v: Rows,
        labels: Labels,
        told: Scalars,
    ) -> Rows:
        """Guided velocities for v = x_1 - x_0 and told = 1 - 1/w."""
        params = base.frozen(inputs, self.target_ema)
        x2, t2 = rows.append(xt, xt, 1), rows.append(t, t, 1)
        labels2 = rows.append(labels, jnp.full_like(labels, inputs.null_label), 1)
        finest = jnp.full_like(t2, 1 / self.finest_steps)
        out = inputs.apply(params, x2, t2, finest, labels2, guidance=jnp.zeros_like(t2))
        s_c, s_null = rows.detach(out, 1)
        guided = base.within(t, self.guidance_interval)
        guided &= base.has_label(labels, inputs.null_label)
        # w - 1 of what the network is told.
        more = base.along_rows(jnp.where(guided, told / (1 - told), 0.0), v)
        return jax.lax.stop_gradient(v + more * (s_c - s_null))

    def bootstrap_targets(
        self,
        inputs: base.Inputs,
        xt: Rows,
        t: Scalars,
        d: Scalars,
        labels: Labels,
        told: Scalars,
    ) -> Rows:
        """Targets for steps of size d, from two half steps."""
        params, half = base.frozen(inputs, self.target_ema), d / 2
        v1 = inputs.apply(params, xt, t, half, labels, guidance=told)
        x_half = base.clipped(xt + base.along_rows(half, xt) * v1, self.clip)
        v2 = inputs.apply(params, x_half, t + half, half, labels, guidance=told)
        return jax.lax.stop_gradient(base.clipped((v1 + v2) / 2, self.clip))

    def loss(self, inputs: base.Inputs) -> tuple[jax.Array, base.Metrics]:
        noise_key, time_key, label_key, guidance_key = jax.random.split(inputs.key, 4)
        x1, num_rows, stride = inputs.x1, inputs.x1.shape[0], self._stride
        x0 = jax.random.normal(noise_key, x1.shape)

        grid = rotating_grids(num_rows, stride, self.finest_steps, inputs.step)
        t = jnp.floor(jax.random.uniform(time_key, (num_rows,)) * grid) / grid
        dropped = base.drop_labels(label_key, inputs.labels, self.label_dropout, inputs.null_label)
        labels = rows.put(dropped, stride, rows.take(inputs.labels, stride))
        w = jax.random.uniform(guidance_key, (num_rows,), minval=1.0, maxval=self.max_guidance)
        told = 1 - 1 / w

        xt, v = base.path(x0, x1, t, self.sigma_min), base.path_velocity(x0, x1, self.sigma_min)
        boot_target = self.bootstrap_targets(
            inputs, *(rows.take(a, stride) for a in (xt, t, 1 / grid, labels, told))
        )
        flow_target, flow_told = rows.rest(v, stride), rows.rest(told, stride)
        if self.max_guidance > 1:
            guided = self.guided_targets(
                inputs, *(rows.take(rows.rest(a, stride), 2) for a in (xt, t, v, labels, told))
            )
            flow_target = rows.put(flow_target, 2, guided)
            # Plain rows are told w = 1.
            flow_told = rows.put(jnp.zeros_like(flow_told), 2, rows.take(flow_told, 2))
        target = rows.merge(boot_target, flow_target, stride)
        told = rows.merge(rows.take(told, stride), flow_told, stride)
        error = base.mean_square(
            inputs.apply(inputs.params, xt, t, 1 / grid, labels, guidance=told) - target
        )
        flow = rows.rest(error, stride)
        losses = {"loss_flow": flow, "loss_bootstrap": rows.take(error, stride)}
        if self.max_guidance > 1:
            losses |= {"loss_flow": rows.rest(flow, 2), "loss_guided": rows.take(flow, 2)}
        levels = jnp.round(jnp.log2(rows.take(grid, stride)))
        by_level = losses_by_level(losses["loss_bootstrap"], levels, self.finest_steps)
        return sum((jnp.mean(each) for each in losses.values()), jnp.zeros(())), losses | by_level

    def sample(
        self,
        velocity: base.ConditionedFn,
        x0: Rows,
        labels: Labels,
        num_steps: int,
        keys: Keys,
    ) -> Rows:
        """Euler as in Shortcut, told the guidance of samples too."""
        told = told_guidance.telling(velocity, guidance=1 - 1 / self.sample_guidance)
        d = step_size(num_steps, self.finest_steps)
        return samplers.euler(told, x0, labels, num_steps, d)

"""Shortcut models: one network for every step size, trained in one phase."""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from shortcut_tpu.array_types import Keys, Labels, Rows, Scalars
from shortcut_tpu.objectives import base
from shortcut_tpu.objectives.rows import append, detach, put, take
from shortcut_tpu.sampling import samplers


@dataclasses.dataclass(frozen=True)
class Shortcut(base.Objective):
    """Flow matching at the finest step, self-consistency at all coarser ones.

        flow rows       || s(x_t, t, 1/M) - (x_1 - x_0) ||^2
        bootstrap rows  || s(x_t, t, 2d) - sg[(s(x_t, t, d) + s(x'_{t+d}, t+d, d)) / 2] ||^2
                        with x'_{t+d} = x_t + d s(x_t, t, d), both from an average of the weights

    Source: "One Step Diffusion via Shortcut Models" (arXiv 2410.12557, equation 5 and algorithm 1).
    One plain mean over all rows, as in the official code. Every choice of either has a name:

    Attributes:
      finest_steps: M; step sizes are 1, 1/2, ..., 1/M and level means log2(1/d).
      bootstrap_share: k, a unit fraction; every (1/k)-th row is a bootstrap row (paper 1/4,
        code 1/8).
      level_remainder: bootstrap rows are dealt to the levels in equal parts; what is left over goes
        to level 0 ("coarsest", the official code) or to each level in its turn, step by step
        ("rotate"), so that a batch with fewer bootstrap rows than levels still trains them all.
      clip: bound on x' and on the target, |.| <= clip; 0 for none (code 4).
      guidance: w in v_null + w (v - v_null), applied in the target of the finest bootstrap level
        only, from which it spreads upwards without compounding; 1 for none.
      label_dropout: on flow rows only, so that only the finest step knows the null label.
      target_ema: the average of the weights that makes the targets; "" for the weights themselves.
      sigma_min: noise left at t = 1 (code 1e-5, paper 0).
    """

    name: ClassVar[str] = "shortcut"

    finest_steps: int = 128
    bootstrap_share: float = 0.25
    level_remainder: str = "rotate"
    clip: float = 4.0
    guidance: float = 1.0
    label_dropout: float = 0.1
    target_ema: str = "target"
    sigma_min: float = 1e-5

    @property
    def row_stride(self) -> int:
        return round(1 / self.bootstrap_share)

    @property
    def ema_names(self) -> tuple[str, ...]:
        return (self.target_ema,) if self.target_ema else ()

    @property
    def num_levels(self) -> int:
        """Bootstrap levels, 0 .. num_levels - 1; flow rows are at level num_levels."""
        return int(math.log2(self.finest_steps))

    def sample(
        self,
        velocity: base.ConditionedFn,
        x0: Rows,
        labels: Labels,
        num_steps: int,
        keys: Keys,
    ) -> Rows:
        """Euler, told the trained step size that `step_size` gives."""
        d = step_size(num_steps, self.finest_steps)
        return samplers.euler(velocity, x0, labels, num_steps, d)

    def loss(self, inputs: base.Inputs) -> tuple[jax.Array, base.Metrics]:
        noise_key, flow_key, bootstrap_key, label_key = jax.random.split(inputs.key, 4)
        x1, rows, stride = inputs.x1, inputs.x1.shape[0], self.row_stride
        x0 = jax.random.normal(noise_key, x1.shape)

        # Flow rows: the finest step, labels dropped.
        t = jax.random.randint(flow_key, (rows,), 0, self.finest_steps) / self.finest_steps
        d = jnp.full(rows, 1 / self.finest_steps)
        target = base.path_velocity(x0, x1, self.sigma_min)
        labels = base.drop_labels(label_key, inputs.labels, self.label_dropout, inputs.null_label)

        # Bootstrap rows: every stride-th, so that every device has its share of them.
        levels = self.levels(rows // stride, inputs.step)
        boot_t = jnp.floor(jax.random.uniform(bootstrap_key, levels.shape) * 2.0**levels)
        t = put(t, stride, boot_t / 2.0**levels)
        d = put(d, stride, 2.0**-levels)
        labels = put(labels, stride, take(inputs.labels, stride))
        xt = base.path(x0, x1, t, self.sigma_min)
        boot_target = self.targets(
            inputs, take(xt, stride), take(t, stride), levels, take(labels, stride)
        )
        target = put(target, stride, boot_target)

        v = inputs.apply(inputs.params, xt, t, d, labels)
        error = base.mean_square(v - target)

        by_row = error.reshape(-1, stride)
        metrics = {"loss_flow": by_row[:, 1:], "loss_bootstrap": by_row[:, 0]}
        return jnp.mean(error), metrics | losses_by_level(by_row[:, 0], levels, self.finest_steps)

    def levels(self, rows: int, step: jax.Array | int) -> jax.Array:
        """Levels [rows] float32 of the bootstrap rows at a step.

        In equal parts from the finest down, dealt in the order of `_deal`, so that the guided level
        lies on every `_guided_stride`-th row.
        """
        share, left = divmod(rows, self.num_levels)
        finest_first = self.num_levels - 1 - jnp.arange(self.num_levels)
        if self.level_remainder == "coarsest":
            extra = jnp.zeros(left, finest_first.dtype)
        else:
            extra = jnp.sort((jnp.asarray(step) * left + jnp.arange(left)) % self.num_levels)[::-1]
        levels = jnp.sort(jnp.concatenate([jnp.repeat(finest_first, share), extra]))[::-1]
        return levels[self._deal(rows)].astype(jnp.float32)

    def targets(
        self,
        inputs: base.Inputs,
        xt: Rows,
        t: Scalars,
        levels: jax.Array,
        labels: Labels,
    ) -> Rows:
        """Self-consistency targets for steps of size 2^-level, from two half steps.

        Args:
          inputs: for the network, its averages and the null label.
          xt: [n, H, W, C], at times t [n].
          t: [n], multiples of 2^-level.
          levels: [n]; guidance applies to rows of level num_levels - 1, which must lie where
            `levels` puts them.
          labels: [n].

        Returns:
          [n, H, W, C], no gradient flows into it.
        """
        params = base.frozen(inputs, self.target_ema)
        half = 0.5 * 2.0**-levels
        guided_stride = self._guided_stride(xt.shape[0], inputs.row_shards)

        def velocity(x: Rows, t: Scalars) -> Rows:
            if self.guidance == 1:
                return inputs.apply(params, x, t, half, labels)
            # Conditional rows and the null-label copies of those that may be guided, in one batch.
            x2, t2, d2 = (append(a, take(a, guided_stride), guided_stride) for a in (x, t, half))
            null = jnp.full_like(take(labels, guided_stride), inputs.null_label)
            v = inputs.apply(params, x2, t2, d2, append(labels, null, guided_stride))
            v, v_null = detach(v, guided_stride)
            v_cond = take(v, guided_stride)
            guided = v_null + self.guidance * (v_cond - v_null)
            is_guided = take(levels, guided_stride) == self.num_levels - 1
            guided = jnp.where(base.along_rows(is_guided, v_cond), guided, v_cond)
            return put(v, guided_stride, guided)

        v1 = velocity(xt, t)
        x_half = base.clipped(xt + base.along_rows(half, xt) * v1, self.clip)
        v2 = velocity(x_half, t + half)
        return jax.lax.stop_gradient(base.clipped((v1 + v2) / 2, self.clip))

    def _deal(self, rows: int) -> np.ndarray:
        """For each row its rank in the finest-first list of levels: strided, not in blocks."""
        stride = self._guided_stride(rows, 1)
        return np.arange(rows).reshape(stride, rows // stride).T.reshape(rows)

    def _guided_stride(self, rows: int, row_shards: int) -> int:
        """The largest stride whose rows hold the whole guided level and every device's share.

        A divisor of the stride that `levels` dealt with, so that moving to more devices changes
        which rows are evaluated without a label and nothing else.
        """
        most = rows // self.num_levels + (rows % self.num_levels > 0)  # guided rows, at most
        dealt = max(s for s in range(1, rows + 1) if rows % s == 0 and rows // s >= most)
        return math.gcd(dealt, max(rows // row_shards, 1))


def step_size(num_steps: int, finest_steps: int) -> float:
    """d = 1/num_steps; between two trained step sizes, the finer."""
    return max(2.0 ** -math.ceil(math.log2(num_steps)), 1 / finest_steps)


def losses_by_level(error: jax.Array, levels: jax.Array, finest_steps: int) -> base.Metrics:
    """Metrics loss_level_0, ..., of bootstrap rows with these errors [n] at these levels [n].

    Level l has d = 2^-l; the finest, which only flow rows have, is not among them.
    """
    return {
        f"loss_level_{level}": jnp.where(levels == level, error, jnp.nan)
        for level in range(finest_steps.bit_length() - 1)
    }


def rotating_grids(
    num_rows: int, stride: int, finest_steps: int, step: jax.Array | int
) -> jax.Array:
    """1/d [num_rows] of rows at a step: the levels take turns on every stride-th, row by row.

    The others are flow rows at the finest step size.
    """
    num_boot, num_levels = num_rows // stride, finest_steps.bit_length() - 1
    turn = (step % num_levels) * num_boot + jnp.arange(num_boot)
    return put(jnp.full(num_rows, finest_steps), stride, 2 ** (turn % num_levels))

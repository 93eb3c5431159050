"""SplitMeanFlow: the mean velocity from its additivity over a split interval, derivative-free."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from shortcut_tpu.array_types import Labels, Rows, Scalars
from shortcut_tpu.objectives import base, mean_velocity


@dataclasses.dataclass(frozen=True)
class SplitMeanFlow(mean_velocity.MeanVelocity):
    """|| u(x_t, t, d) - sg[l u(x_t, t, l d) + (1 - l) u(x_s, s, (1-l) d)] ||^2,  l ~ U(0, 1).

    s = t + l d and x_s = x_t + l d u(x_t, t, l d): Shortcut's rule with a free split point. Rows
    with d = 0 learn the velocity v_g, which is x_1 - x_0 or, guided, MeanFlow's: from there the
    guidance spreads to longer intervals.

    Source: "SplitMeanFlow: Interval Splitting Consistency in Few-Step Generative Modeling" (arXiv
    2507.16884, its interval splitting identity and algorithm 1): (t - r) u(z_t, r, t) =
    (s - r) u(z_s, r, s) + (t - s) u(z_t, s, t). The paper's t is our 1 - t, its r our 1 - t - d,
    its velocities ours with the other sign. Samples come from Euler steps, told d = 1/n.

    Attributes, beside those of `MeanVelocity`:
      target_ema: the average of the weights that makes the targets; "" for the weights themselves.
    """

    name: ClassVar[str] = "split_meanflow"

    interval_share: float = 0.5
    target_ema: str = ""

    @property
    def ema_names(self) -> tuple[str, ...]:
        return (self.target_ema,) if self.target_ema else ()

    def targets(
        self,
        inputs: base.Inputs,
        xt: Rows,
        t: Scalars,
        d: Scalars,
        split: Scalars,
        labels: Labels,
    ) -> Rows:
        """Targets of rows with an interval [t, t + d] split at t + split d."""
        params = base.frozen(inputs, self.target_ema)
        first, second = split * d, (1 - split) * d
        u1 = inputs.apply(params, xt, t, first, labels)
        xs = xt + base.along_rows(first, xt) * u1
        u2 = inputs.apply(params, xs, t + first, second, labels)
        part = base.along_rows(split, xt)
        return jax.lax.stop_gradient(part * u1 + (1 - part) * u2)

    def loss(self, inputs: base.Inputs) -> tuple[jax.Array, base.Metrics]:
        p, kinds = self.points(inputs), self.kinds
        split_key = jax.random.split(inputs.key, 4)[3]
        split = jax.random.uniform(split_key, p.t.shape)
        some = (kinds.take(a) for a in (p.xt, p.t, p.d, split, p.labels))
        target = kinds.put(p.v, self.targets(inputs, *some))

        error = base.mean_square(inputs.apply(inputs.params, p.xt, p.t, p.d, p.labels) - target)
        metrics = {
            "loss_velocity": kinds.rest(error),
            "loss_interval": kinds.take(error),
        }
        return jnp.mean(error), metrics

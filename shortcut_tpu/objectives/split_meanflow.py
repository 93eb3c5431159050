"""SplitMeanFlow: the mean velocity from its additivity over a split interval, derivative-free."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from shortcut_tpu.objectives import base, mean_velocity, rows


@dataclasses.dataclass(frozen=True)
class SplitMeanFlow(base.Objective):
    """|| u(x_t, t, d) - sg[l u(x_t, t, l d) + (1 - l) u(x_s, s, (1-l) d)] ||^2,  l ~ U(0, 1).

    s = t + l d and x_s = x_t + l d u(x_t, t, l d): Shortcut's rule with a free split point. Rows
    with d = 0 learn the velocity x_1 - x_0.

    Source: "SplitMeanFlow: Interval Splitting Consistency in Few-Step Generative Modeling" (arXiv
    2507.16884, its interval splitting identity and algorithm 1): (t - r) u(z_t, r, t) =
    (s - r) u(z_s, r, s) + (t - s) u(z_t, s, t). The paper's t is our 1 - t, its r our 1 - t - d,
    its velocities ours with the other sign. Samples come from Euler steps, told d = 1/n.

    Attributes:
      interval_share: a unit fraction, the rows with d > 0.
      time_mean, time_std: times are 1 - sigmoid(N(mean, std)).
      target_ema: the average of the weights that makes the targets; "" for the weights themselves.
      label_dropout: share of rows that lose their label.
    """

    name: ClassVar[str] = "split_meanflow"
    smooth_times: ClassVar[bool] = True

    interval_share: float = 0.5
    time_mean: float = -0.4
    time_std: float = 1.0
    target_ema: str = ""
    label_dropout: float = 0.1

    @property
    def row_stride(self) -> int:
        return round(1 / self.interval_share)

    @property
    def ema_names(self) -> tuple[str, ...]:
        return (self.target_ema,) if self.target_ema else ()

    def targets(
        self,
        inputs: base.Inputs,
        xt: jax.Array,
        t: jax.Array,
        d: jax.Array,
        split: jax.Array,
        labels: jax.Array,
    ) -> jax.Array:
        """Targets [n, H, W, C] of rows with an interval [t, t + d] split at t + split d."""
        params = base.frozen(inputs, self.target_ema)
        first, second = split * d, (1 - split) * d
        u1 = inputs.apply(params, xt, t, first, labels)
        xs = xt + base.along_rows(first, xt) * u1
        u2 = inputs.apply(params, xs, t + first, second, labels)
        part = base.along_rows(split, xt)
        return jax.lax.stop_gradient(part * u1 + (1 - part) * u2)

    def loss(self, inputs: base.Inputs) -> tuple[jax.Array, base.Metrics]:
        noise_key, time_key, split_key, label_key = jax.random.split(inputs.key, 4)
        x1, stride = inputs.x1, self.row_stride
        x0 = jax.random.normal(noise_key, x1.shape)
        t, d = mean_velocity.draw_intervals(
            time_key, x1.shape[0], stride, self.time_mean, self.time_std
        )
        xt = base.path(x0, x1, t, sigma_min=0.0)
        labels = base.drop_labels(label_key, inputs.labels, self.label_dropout, inputs.null_label)
        split = jax.random.uniform(split_key, t.shape)
        some = (rows.take(a, stride) for a in (xt, t, d, split, labels))
        target = rows.put(x1 - x0, stride, self.targets(inputs, *some))

        error = base.mean_square(inputs.apply(inputs.params, xt, t, d, labels) - target)
        metrics = {
            "loss_velocity": rows.rest(error, stride),
            "loss_interval": rows.take(error, stride),
        }
        return jnp.mean(error), metrics

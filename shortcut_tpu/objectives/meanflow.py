"""MeanFlow: the mean velocity from its differential identity, by forward-mode differentiation."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from shortcut_tpu.objectives import base, mean_velocity, rows


@dataclasses.dataclass(frozen=True)
class MeanFlow(base.Objective):
    """|| u(x_t, t, d) - sg[v_g + d Du(x_t, t, d)] ||^2,  D along (v_g, 1, -1) in (x, t, d).

    Source: "Mean Flows for One-step Generative Modeling" (arXiv 2505.13447, algorithm 1 and, for
    the guided velocity v_g, equation 21). The paper's t is our 1 - t, its r our 1 - t - d and its
    velocities ours with the other sign; see `mean_velocity`. Guidance is in the target: samples
    cost one evaluation a step. Samples come from Euler steps, told d = 1/n.

    The derivative is taken on the rows that have an interval and outside of the gradient, which
    makes a step cheaper than the paper's and changes nothing else.

    Attributes:
      interval_share: a unit fraction, the rows with d > 0 (paper 1/4); the others learn v_g.
      time_mean, time_std: times are 1 - sigmoid(N(mean, std)) (paper -0.4, 1).
      guidance: w of v_g; 1 for none.
      guidance_mix: k of v_g; 0 for none.
      label_dropout: share of rows that lose their label, and with it the guidance.
      weight_epsilon, weight_power: a row's summed square is divided by (itself + epsilon)^power
        (paper's code 0.01, 1).
    """

    name: ClassVar[str] = "meanflow"
    smooth_times: ClassVar[bool] = True

    interval_share: float = 0.25
    time_mean: float = -0.4
    time_std: float = 1.0
    guidance: float = 1.0
    guidance_mix: float = 0.0
    label_dropout: float = 0.1
    weight_epsilon: float = 0.01
    weight_power: float = 1.0

    @property
    def row_stride(self) -> int:
        return round(1 / self.interval_share)

    def targets(
        self,
        inputs: base.Inputs,
        xt: jax.Array,
        t: jax.Array,
        d: jax.Array,
        v: jax.Array,
        labels: jax.Array,
    ) -> jax.Array:
        """v + d Du [n, H, W, C] of rows with an interval [t, t + d], guided velocity v."""
        derivative = mean_velocity.total_derivative(inputs, xt, t, d, v, labels)
        return v + base.along_rows(d, xt) * derivative

    def loss(self, inputs: base.Inputs) -> tuple[jax.Array, base.Metrics]:
        noise_key, time_key, label_key = jax.random.split(inputs.key, 3)
        x1, stride = inputs.x1, self.row_stride
        x0 = jax.random.normal(noise_key, x1.shape)
        t, d = mean_velocity.draw_intervals(
            time_key, x1.shape[0], stride, self.time_mean, self.time_std
        )
        xt = base.path(x0, x1, t, sigma_min=0.0)
        labels = base.drop_labels(label_key, inputs.labels, self.label_dropout, inputs.null_label)
        v = mean_velocity.guided_velocity(
            inputs, xt, t, x1 - x0, labels, guidance=self.guidance, mix=self.guidance_mix
        )
        some = (rows.take(a, stride) for a in (xt, t, d, v, labels))
        target = rows.put(v, stride, self.targets(inputs, *some))

        error = base.sum_square(inputs.apply(inputs.params, xt, t, d, labels) - target)
        weighted = mean_velocity.adaptive(error, self.weight_epsilon, self.weight_power)
        per_value = error / x1[0].size
        metrics = {
            "loss_velocity": rows.rest(per_value, stride),
            "loss_interval": rows.take(per_value, stride),
        }
        return jnp.mean(weighted), metrics

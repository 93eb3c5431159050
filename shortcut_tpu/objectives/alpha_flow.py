"""alpha-Flow: from trajectory flow matching through Shortcut's rule to MeanFlow, by a schedule."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from shortcut_tpu.objectives import base, mean_velocity, rows


@dataclasses.dataclass(frozen=True)
class AlphaFlow(base.Objective):
    """|| u(x_t, t, d) - sg[a v_g + (1 - a) u(x_s, s, (1 - a) d)] ||^2.

    s = t + a d and x_s = x_t + a d v_g. a = 1 is trajectory flow matching; a = 1/2, with the
    model's own u(x_t, t, d/2) in the place of v_g, is Shortcut; for a -> 0 the gradient over a is
    MeanFlow's. a falls from 1 to 0 in a sigmoid over the training; where it would be below `clamp`
    it is 0 and the target is MeanFlow's.

    Source: "AlphaFlow: Understanding and Improving MeanFlow Models" (arXiv 2510.20771, the
    alpha-Flow loss and its curriculum; weights and bounds as in its official code). The paper's t
    is our 1 - t, its r our 1 - t - d, its velocities ours with the other sign; see `mean_velocity`.
    Samples come from Euler steps, told d = 1/n.

    Attributes:
      interval_share: a unit fraction, the rows with d > 0 (code 1/2); the others learn v_g.
      time_mean, time_std: times are 1 - sigmoid(N(mean, std)).
      schedule_start, schedule_end: where in the training, as shares of it, a falls.
      schedule_gamma: the sigmoid's steepness (paper 25).
      clamp: a within `clamp` of 0 or 1 is 0 or 1 (paper 0.005).
      clip: bound on the target of rows with an interval; 0 for none (code 4).
      guidance, guidance_mix: w and k of v_g, as in MeanFlow; 1 and 0 for none.
      label_dropout: share of rows that lose their label, and with it the guidance.
      weight_epsilon: a row's mean square is divided by itself + epsilon and, on rows with an
        interval, multiplied by a (code 0.001).
    """

    name: ClassVar[str] = "alpha_flow"
    smooth_times: ClassVar[bool] = True

    interval_share: float = 0.5
    time_mean: float = -0.4
    time_std: float = 1.0
    schedule_start: float = 0.0
    schedule_end: float = 1.0
    schedule_gamma: float = 25.0
    clamp: float = 0.005
    clip: float = 4.0
    guidance: float = 1.0
    guidance_mix: float = 0.0
    label_dropout: float = 0.1
    weight_epsilon: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            "schedule_start",
            self.schedule_start < self.schedule_end,
            f"below schedule_end={self.schedule_end}",
        )

    @property
    def row_stride(self) -> int:
        return round(1 / self.interval_share)

    def alpha(self, step: jax.Array, num_steps: int) -> jax.Array:
        """a in [0, 1] at a step of a training of `num_steps`."""
        middle = (self.schedule_start + self.schedule_end) / 2
        width = self.schedule_end - self.schedule_start
        a = jax.nn.sigmoid(-self.schedule_gamma * (step / num_steps - middle) / width)
        return jnp.where(a < self.clamp, 0.0, jnp.where(a > 1 - self.clamp, 1.0, a))

    def targets(
        self,
        inputs: base.Inputs,
        alpha: jax.Array,
        xt: jax.Array,
        t: jax.Array,
        d: jax.Array,
        v: jax.Array,
        labels: jax.Array,
    ) -> jax.Array:
        """Targets [n, H, W, C] of rows with an interval [t, t + d], guided velocity v."""
        params, wide_d = base.frozen(inputs, ""), base.along_rows(d, xt)

        def discrete() -> jax.Array:
            x_s = xt + alpha * wide_d * v
            u = inputs.apply(params, x_s, t + alpha * d, (1 - alpha) * d, labels)
            return alpha * v + (1 - alpha) * u

        def continuous() -> jax.Array:
            return v + wide_d * mean_velocity.total_derivative(inputs, xt, t, d, v, labels)

        target = jax.lax.cond(alpha > 0, discrete, continuous)
        return jax.lax.stop_gradient(base.clipped(target, self.clip))

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
        alpha = self.alpha(inputs.step, inputs.num_steps)
        some = (rows.take(a, stride) for a in (xt, t, d, v, labels))
        target = rows.put(v, stride, self.targets(inputs, alpha, *some))

        error = base.mean_square(inputs.apply(inputs.params, xt, t, d, labels) - target)
        interval_weight = jnp.where(alpha > 0, alpha, 1.0)
        weight = jnp.where(d > 0, interval_weight, 1.0)
        weighted = weight * mean_velocity.adaptive(error, self.weight_epsilon, power=1.0)
        metrics = {
            "loss_velocity": rows.rest(error, stride),
            "loss_interval": rows.take(error, stride),
            "alpha": alpha,
        }
        return jnp.mean(weighted), metrics

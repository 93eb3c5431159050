"""alpha-Flow: from trajectory flow matching through Shortcut's rule to MeanFlow, by a schedule."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from shortcut_tpu.array_types import Keys, Labels, Rows, Scalars
from shortcut_tpu.objectives import base, mean_velocity
from shortcut_tpu.sampling import samplers


@dataclasses.dataclass(frozen=True)
class AlphaFlow(mean_velocity.MeanVelocity):
    """|| u(x_t, t, d) - sg[a v_g + (1 - a) u(x_s, s, (1 - a) d)] ||^2.

    s = t + a d and x_s = x_t + a d v_g. a = 1 is trajectory flow matching; a = 1/2, with the
    model's own u(x_t, t, d/2) in the place of v_g, is Shortcut; for a -> 0 the gradient over a is
    MeanFlow's. a falls from 1 to 0 in a sigmoid over the training; where it would be below `clamp`
    it is 0 and the target is MeanFlow's.

    Source: "AlphaFlow: Understanding and Improving MeanFlow Models" (arXiv 2510.20771, the
    alpha-Flow loss and its curriculum; weights and bounds as in its official code). The paper's t
    is our 1 - t, its r our 1 - t - d, its velocities ours with the other sign; see `mean_velocity`.

    Where its official code differs from MeanFlow's, so does this: a flow row draws one time and not
    the noisier of two; labels are dropped at any row whose time is guided, and such a row learns
    w v + (1 - w) u_null like others; the clip is on the target while a > 0, never on MeanFlow's.
    The recipe: Adam at 1e-4 with b2 .95, no weight decay, gradients clipped at 16, evaluation EMA
    .9999; XL/2 guided with w .2 and k .92 in times of [.25, 1], its a falling between .5 and .83
    of the training; B/2 guided with an interval_share of 3/4.

    Attributes, beside those of `MeanVelocity`:
      interval_share: 1/n or 1 - 1/n, the rows with d > 0 (code 1/2); the others learn v_g.
      schedule_start, schedule_end: where in the training, as shares of it, a falls.
      schedule_gamma: the sigmoid's steepness (paper 25).
      clamp: a within `clamp` of 0 or 1 is 0 or 1 (paper 0.005).
      clip: bound on the target of rows with an interval while a > 0; 0 for none (code 4).
      label_dropout: share of the rows at guided times that lose their label.
      weight_epsilon: a row's mean square is divided by itself + epsilon and, on rows with an
        interval, multiplied by a (code 0.001).
      consistency_steps: samples in up to so many steps come from consistency steps, others from
        Euler's (paper: 2, for its two-step FID).
    """

    name: ClassVar[str] = "alpha_flow"
    differentiates: ClassVar[bool] = True
    guides_null: ClassVar[bool] = True
    scheduled: ClassVar[bool] = True

    interval_share: float = 0.5
    schedule_start: float = 0.0
    schedule_end: float = 1.0
    schedule_gamma: float = 25.0
    clamp: float = 0.005
    clip: float = 4.0
    weight_epsilon: float = 1e-3
    consistency_steps: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            "schedule_start",
            self.schedule_start < self.schedule_end,
            f"below schedule_end={self.schedule_end}",
        )

    def draw_intervals(self, key: jax.Array, num_rows: int) -> tuple[jax.Array, jax.Array]:
        """t and d [num_rows]; t of flow rows from one draw."""
        pair_key, flow_key = jax.random.split(key)
        t, d = super().draw_intervals(pair_key, num_rows)
        flow_t = jax.nn.sigmoid(
            -self.time_mean - self.time_std * jax.random.normal(flow_key, (num_rows,))
        )
        return self.kinds.put(flow_t, self.kinds.take(t)), d

    def drop_labels(self, key: jax.Array, inputs: base.Inputs, t: Scalars) -> Labels:
        """The labels that the network is told; those at guided times may be dropped."""
        dropped = base.drop_labels(key, inputs.labels, self.label_dropout, inputs.null_label)
        inside = base.within(t, self.guidance_interval)
        return jnp.where(base.along_rows(inside, dropped), dropped, inputs.labels)

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
        xt: Rows,
        t: Scalars,
        d: Scalars,
        v: Rows,
        labels: Labels,
    ) -> Rows:
        """Targets of rows with an interval [t, t + d], guided velocity v."""
        params, wide_d = base.frozen(inputs, ""), base.along_rows(d, xt)

        def discrete() -> jax.Array:
            x_s = xt + alpha * wide_d * v
            u = inputs.apply(params, x_s, t + alpha * d, (1 - alpha) * d, labels)
            return base.clipped(alpha * v + (1 - alpha) * u, self.clip)

        def continuous() -> jax.Array:
            return v + wide_d * mean_velocity.total_derivative(inputs, xt, t, d, v, labels)

        return jax.lax.stop_gradient(jax.lax.cond(alpha > 0, discrete, continuous))

    def loss(self, inputs: base.Inputs) -> tuple[jax.Array, base.Metrics]:
        p, kinds = self.points(inputs), self.kinds
        alpha = self.alpha(inputs.step, inputs.num_steps)
        some = (kinds.take(a) for a in p)
        target = kinds.put(p.v, self.targets(inputs, alpha, *some))

        error = base.mean_square(inputs.apply(inputs.params, p.xt, p.t, p.d, p.labels) - target)
        interval_weight = jnp.where(alpha > 0, alpha, 1.0)
        weight = jnp.where(p.d > 0, interval_weight, 1.0)
        weighted = weight * mean_velocity.adaptive(error, self.weight_epsilon, power=1.0)
        metrics = {
            "loss_velocity": kinds.rest(error),
            "loss_interval": kinds.take(error),
            "alpha": alpha,
        }
        return jnp.mean(weighted), metrics

    def sample(
        self,
        velocity: base.ConditionedFn,
        x0: Rows,
        labels: Labels,
        num_steps: int,
        keys: Keys,
    ) -> Rows:
        """Consistency steps, told the whole rest of the way, or Euler's, told d = 1/num_steps."""
        if num_steps > self.consistency_steps:
            return samplers.euler(velocity, x0, labels, num_steps, 1 / num_steps)

        def to_the_end(x: Rows, t: Scalars, _: Scalars, labels: Labels) -> Rows:
            return velocity(x, t, 1 - t, labels)

        return samplers.consistency(to_the_end, x0, labels, num_steps, keys)

"""High-order matching: a shortcut model that knows its acceleration beside its velocity."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from shortcut_tpu.array_types import Keys, Labels, Outputs, Rows, Scalars
from shortcut_tpu.objectives import base, rows
from shortcut_tpu.objectives.shortcut import losses_by_level, rotating_grids, step_size
from shortcut_tpu.sampling import samplers

# The variance-preserving path's noise rate rises by 19.9 from 0.1 at the data.
_VP_SLOPE, _VP_OFFSET = 19.9, 0.1


@dataclasses.dataclass(frozen=True)
class HighOrder(base.Objective):
    """|| u1 - u1* ||^2 + c || u2 - u2* ||^2, two heads of one network at (x_t, t, d).

        flow rows       u1* = dx_t/dt on a curved path x_t = a_t x_1 + b_t x_0, and
                        u2* = sg[(u1 . grad) u1 + du1/dt] at (x_t, t), both told d = 1/M
        bootstrap rows  u1*(2d) = sg[(u1 + u1') / 2] and u2*(2d) = sg[(u2 + u2') / 4], where the
                        dashed are at x' = x_t + d u1 + d^2 u2 / 2 and t + d, told d

    Source: "High-Order Matching for One-Step Shortcut Diffusion Models" (HOMO, arXiv 2502.00688,
    second order), in which u2 is a network of its own that sees u1; here it is a second head, which
    sees what u1 is made from. No guidance enters the target.

    Three choices differ from the paper. It regresses u2 on the path's own d^2 x_t/dt^2, whose mean
    given x_t is not the acceleration of the flow that samples follow: steps of the second order by
    it are of first order, and less accurate than Euler's. The flow's is the derivative of u1 along
    (u1, 1), of the trained weights and without a gradient: one forward-mode pass on the flow rows.
    `acceleration=path` is the paper's target. The paper has that target at every d, too; but a step
    of 2d moves by 2d u1 + 2 d^2 u2, and with the u1* above that equals the two steps of d only if
    u2 is u2*: otherwise one step counts the acceleration of the whole path a second time. And its
    code has c = 1e-15, which leaves u2 untrained. Here c is `acceleration_weight` times the ratio
    of the mean squares of velocity and acceleration on the path (1/10 on smoothstep), so that at 1
    equal relative errors of both count the same.

    Attributes:
      finest_steps: M, a power of two; times and step sizes are multiples of 1/M.
      bootstrap_share: a unit fraction; every (1/share)-th row is a bootstrap row, over which the
        levels take turns.
      curve: smoothstep, a = 3 t^2 - 2 t^3 and b = 1 - a; or variance_preserving, a =
        exp(-19.9 (1-t)^2 / 4 - 0.1 (1-t) / 2) and b = sqrt(1 - a^2), whose acceleration grows
        without bound towards the data.
      acceleration: flow, or path as in the paper.
      acceleration_weight: c in units of that ratio.
      clip: bound on x'; 0 for none.
      label_dropout: on flow rows only.
      target_ema: the average of the weights that makes the targets; "" for the weights themselves.
    """

    name: ClassVar[str] = "high_order"
    differentiates: ClassVar[bool] = True
    heads: ClassVar[int] = 2
    smooth_times: ClassVar[bool] = True

    finest_steps: int = 128
    bootstrap_share: float = 0.25
    curve: str = "smoothstep"
    acceleration: str = "flow"
    acceleration_weight: float = 1.0
    clip: float = 4.0
    label_dropout: float = 0.1
    target_ema: str = "target"

    @property
    def row_stride(self) -> int:
        return round(1 / self.bootstrap_share)

    @property
    def ema_names(self) -> tuple[str, ...]:
        return (self.target_ema,) if self.target_ema else ()

    def coefficients(self, t: Scalars) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(a_t, b_t) at times t [B] in [0, 1), then their first and second derivatives in t.

        Returns:
          Three arrays [2, B].
        """

        def mix(t: Scalars) -> jax.Array:
            if self.curve == "smoothstep":
                a = t * t * (3 - 2 * t)
                return jnp.stack([a, 1 - a])
            log_a = -_VP_SLOPE / 4 * (1 - t) ** 2 - _VP_OFFSET / 2 * (1 - t)
            # 1 - a^2 without cancellation next to the data.
            return jnp.stack([jnp.exp(log_a), jnp.sqrt(-jnp.expm1(2 * log_a))])

        def first(t: Scalars) -> jax.Array:
            return jax.jvp(mix, (t,), (jnp.ones_like(t),))[1]

        return mix(t), *jax.jvp(first, (t,), (jnp.ones_like(t),))

    def weight(self) -> jax.Array:
        """c, from the mean squares over all times for data and noise of unit variance."""
        _, velocity, acceleration = self.coefficients(
            jnp.arange(self.finest_steps) / self.finest_steps
        )
        return self.acceleration_weight * jnp.mean(velocity**2) / jnp.mean(acceleration**2)

    def flow_accelerations(self, inputs: base.Inputs, xt: Rows, t: Scalars, labels: Labels) -> Rows:
        """(u1 . grad) u1 + du1/dt of the trained weights, told d = 1/M."""
        params, d = base.frozen(inputs, ""), jnp.full_like(t, 1 / self.finest_steps)
        network = inputs.differentiable or inputs.apply

        def u1(x: Rows, t: Scalars) -> Rows:
            return jnp.split(network(params, x, t, d, labels), 2, axis=-1)[0]

        _, acceleration = jax.jvp(u1, (xt, t), (u1(xt, t), jnp.ones_like(t)))
        return jax.lax.stop_gradient(acceleration)

    def bootstrap_targets(
        self, inputs: base.Inputs, xt: Rows, t: Scalars, d: Scalars, labels: Labels
    ) -> Outputs:
        """(u1*, u2*) [n, H, W, 2 C] for steps of size d, from two half steps."""
        params, half = base.frozen(inputs, self.target_ema), d / 2
        out = inputs.apply(params, xt, t, half, labels)
        moved = samplers.second_order_step(xt, out, base.along_rows(half, xt))
        later = inputs.apply(params, base.clipped(moved, self.clip), t + half, half, labels)
        u1, u2 = jnp.split(out + later, 2, axis=-1)
        return jax.lax.stop_gradient(jnp.concatenate([u1 / 2, u2 / 4], axis=-1))

    def loss(self, inputs: base.Inputs) -> tuple[jax.Array, base.Metrics]:
        noise_key, time_key, label_key = jax.random.split(inputs.key, 3)
        x1, num_rows, stride = inputs.x1, inputs.x1.shape[0], self.row_stride
        x0 = jax.random.normal(noise_key, x1.shape)
        grid = rotating_grids(num_rows, stride, self.finest_steps, inputs.step)
        t = jnp.floor(jax.random.uniform(time_key, (num_rows,)) * grid) / grid
        dropped = base.drop_labels(label_key, inputs.labels, self.label_dropout, inputs.null_label)
        labels = rows.put(dropped, stride, rows.take(inputs.labels, stride))

        # [3, B, H, W, C]: where the path is, its velocity and its acceleration.
        a, b = (base.along_rows(c, x1[None]) for c in jnp.stack(self.coefficients(t), axis=1))
        xt, velocity, acceleration = a * x1 + b * x0
        if self.acceleration == "flow" and stride > 1:
            flow = (rows.rest(z, stride) for z in (xt, t, labels))
            of_flow = self.flow_accelerations(inputs, *flow)
            acceleration = rows.merge(rows.take(acceleration, stride), of_flow, stride)
        boot = (rows.take(z, stride) for z in (xt, t, 1 / grid, labels))
        target = rows.put(
            jnp.concatenate([velocity, acceleration], axis=-1),
            stride,
            self.bootstrap_targets(inputs, *boot),
        )
        error = inputs.apply(inputs.params, xt, t, 1 / grid, labels) - target
        of_u1, of_u2 = (base.mean_square(e) for e in jnp.split(error, 2, axis=-1))
        metrics = {
            "loss_velocity": rows.rest(of_u1, stride),
            "loss_acceleration": rows.rest(of_u2, stride),
            "loss_bootstrap": rows.take(of_u1, stride),
            "loss_bootstrap_acceleration": rows.take(of_u2, stride),
        }
        levels = jnp.round(jnp.log2(rows.take(grid, stride)))
        metrics |= losses_by_level(metrics["loss_bootstrap"], levels, self.finest_steps)
        return jnp.mean(of_u1 + self.weight() * of_u2), metrics

    def sample(
        self,
        velocity: base.ConditionedFn,
        x0: Rows,
        labels: Labels,
        num_steps: int,
        keys: Keys,
    ) -> Rows:
        """Second-order steps, told the trained step size that `step_size` gives."""
        d = step_size(num_steps, self.finest_steps)
        return samplers.second_order(velocity, x0, labels, num_steps, d)

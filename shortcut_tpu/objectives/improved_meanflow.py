"""Improved MeanFlow: a regression of the velocity itself, with guidance as a condition."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from shortcut_tpu import samplers
from shortcut_tpu.objectives import base, mean_velocity, rows


@dataclasses.dataclass(frozen=True)
class ImprovedMeanFlow(base.Objective):
    """|| V - sg[v_g] ||^2 + || v_head - sg[v_g] ||^2,  V = u(x_t, t, d) - d sg[Du(x_t, t, d)].

    Du is taken along (v_c, 1, -1) in (x, t, d) with the velocity v_c that the network predicts, so
    that V is a function of x_t alone and x_1 - x_0 enters as a regression's target only. Every row
    draws a guidance strength w, which the network is told as 1 - 1/w:

        v_g = x_1 - x_0 + (1 - 1/w) (v_c - v_null),  v_null predicted without a label, at w = 1

    Source: "Improved Mean Flows" (iMF; the objective of its section 4 and its official code). The
    paper's t is our 1 - t, its r our 1 - t - d, its velocities ours with the other sign; see
    `mean_velocity`. Both heads leave the last block, where the paper gives v blocks of its own;
    the paper's guidance interval and its tokens in place of adaLN are left out.

    Attributes:
      interval_share: a unit fraction, the rows with d > 0 (paper 1/2).
      time_mean, time_std: times are 1 - sigmoid(N(mean, std)) (paper -0.4, 1).
      max_guidance: w = exp(U log max_guidance) with uniform U (paper 8); 1 for none.
      sample_guidance: the strength that samples are conditioned on.
      label_dropout: share of rows that lose their label, and with it the guidance.
      weight_epsilon, weight_power: each summed square is divided by (itself + epsilon)^power.
    """

    name: ClassVar[str] = "improved_meanflow"
    conditions: ClassVar[tuple[str, ...]] = ("guidance",)
    heads: ClassVar[int] = 2
    smooth_times: ClassVar[bool] = True

    interval_share: float = 0.5
    time_mean: float = -0.4
    time_std: float = 1.0
    max_guidance: float = 8.0
    sample_guidance: float = 1.0
    label_dropout: float = 0.1
    weight_epsilon: float = 0.01
    weight_power: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            "sample_guidance",
            self.sample_guidance <= self.max_guidance,
            f"at most max_guidance={self.max_guidance}",
        )

    @property
    def row_stride(self) -> int:
        return round(1 / self.interval_share)

    def velocities(
        self,
        inputs: base.Inputs,
        xt: jax.Array,
        t: jax.Array,
        v: jax.Array,
        labels: jax.Array,
        told: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """(v_g, v_c), each [B, H, W, C], for velocities v = x_1 - x_0 and told = 1 - 1/w [B]."""
        params, zero = base.frozen(inputs, ""), jnp.zeros_like(t)
        if self.max_guidance == 1:
            return v, _head(inputs.apply(params, xt, t, zero, labels, guidance=told), 1)
        null = jnp.full_like(labels, inputs.null_label)
        x2, t2, d2 = (rows.append(a, a, 1) for a in (xt, t, zero))
        labels2, told2 = rows.append(labels, null, 1), rows.append(told, zero, 1)
        out = inputs.apply(params, x2, t2, d2, labels2, guidance=told2)
        v_c, v_null = rows.detach(_head(out, 1), 1)
        v_g = v + base.along_rows(told, v) * (v_c - v_null)
        has_label = base.along_rows(base.has_label(labels, inputs.null_label), v)
        return jnp.where(has_label, v_g, v), v_c

    def compound(
        self,
        inputs: base.Inputs,
        u: jax.Array,
        xt: jax.Array,
        t: jax.Array,
        d: jax.Array,
        v_c: jax.Array,
        labels: jax.Array,
        told: jax.Array,
    ) -> jax.Array:
        """V = u - d sg[Du] [n, H, W, C]; gradients flow through u alone."""
        derivative = mean_velocity.total_derivative(inputs, xt, t, d, v_c, labels, guidance=told)
        return u - base.along_rows(d, u) * _head(derivative, 0)

    def loss(self, inputs: base.Inputs) -> tuple[jax.Array, base.Metrics]:
        noise_key, time_key, label_key, guidance_key = jax.random.split(inputs.key, 4)
        x1, num_rows, stride = inputs.x1, inputs.x1.shape[0], self.row_stride
        x0 = jax.random.normal(noise_key, x1.shape)
        t, d = mean_velocity.draw_intervals(
            time_key, num_rows, stride, self.time_mean, self.time_std
        )
        xt = base.path(x0, x1, t, sigma_min=0.0)
        labels = base.drop_labels(label_key, inputs.labels, self.label_dropout, inputs.null_label)
        told = 1 - self.max_guidance ** -jax.random.uniform(guidance_key, (num_rows,))
        v_g, v_c = self.velocities(inputs, xt, t, x1 - x0, labels, told)

        out = inputs.apply(inputs.params, xt, t, d, labels, guidance=told)
        u, v = _head(out, 0), _head(out, 1)
        some = (rows.take(a, stride) for a in (u, xt, t, d, v_c, labels, told))
        compound = rows.put(u, stride, self.compound(inputs, *some))

        v_g = jax.lax.stop_gradient(v_g)
        error_u, error_v = base.sum_square(compound - v_g), base.sum_square(v - v_g)
        weight = (self.weight_epsilon, self.weight_power)
        loss = mean_velocity.adaptive(error_u, *weight) + mean_velocity.adaptive(error_v, *weight)
        metrics = {
            "loss_velocity": error_v / x1[0].size,
            "loss_interval": rows.take(error_u, stride) / x1[0].size,
        }
        return jnp.mean(loss), metrics

    def sample(
        self,
        velocity: base.ConditionedFn,
        x0: jax.Array,
        labels: jax.Array,
        num_steps: int,
        keys: jax.Array,
    ) -> jax.Array:
        """Euler on u, told d = 1/num_steps and the guidance of samples."""
        told = jnp.full(len(x0), 1 - 1 / self.sample_guidance)

        def u(x: jax.Array, t: jax.Array, d: jax.Array, labels: jax.Array) -> jax.Array:
            return _head(velocity(x, t, d, labels, guidance=told), 0)

        return samplers.euler(u, x0, labels, num_steps, 1 / num_steps)


def _head(out: jax.Array, index: int) -> jax.Array:
    """One of the two velocities [..., C] of [..., 2 C]: 0 for u, 1 for v."""
    return jnp.split(out, 2, axis=-1)[index]

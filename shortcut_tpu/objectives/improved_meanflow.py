"""Improved MeanFlow: a regression of the velocity itself, with guidance as a condition."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from shortcut_tpu.array_types import Keys, Labels, Rows, Scalars
from shortcut_tpu.objectives import base, mean_velocity, rows, told_guidance
from shortcut_tpu.sampling import samplers

Conditions = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class ImprovedMeanFlow(base.Objective):
    """|| V - sg[v_g] ||^2 + || v_head - sg[v_g] ||^2,  V = u(x_t, t, d) - d sg[Du(x_t, t, d)].

    Du is taken along (v_c, 1, -1) in (x, t, d) with the velocity v_c that the network predicts, so
    that V is a function of x_t alone and x_1 - x_0 enters as a regression's target only. Every row
    draws a guidance strength w and the times [start, end] in which it is guided; the network is
    told 1 - 1/w, start and end.

        v_g = x_1 - x_0 + (1 - 1/w') (v_c - v_null),  w' = w if start <= t <= end else 1

    v_c is what the network predicts for the row's label at w', v_null without a label at w = 1,
    both for all times guided. Flow rows are guided at all times, and they alone lose labels, after
    v_c is made.

    Source: "Improved Mean Flows" (iMF, arXiv 2512.02012; the objective of its section 4 and its
    official code). The paper's t is our 1 - t, its r our 1 - t - d, its t_min and t_max our 1 - end
    and 1 - start, its velocities ours with the other sign; see `mean_velocity`. As there, the
    network is told d and not t: it sees in an image how noisy it is. The paper's network is
    `model.network=in_context`, where conditions are tokens and each head has blocks of its own. In
    a DiT conditions modulate (4.57 against 4.09 in its FID of B/2) and both heads leave the last
    block.

    The official recipe: Adam at 1e-4 with b2 .95, no weight decay, batch 1024, latents standardised
    by channel (`data.standardize`); `configs/imagenet256_imf_b.py`.

    Attributes:
      interval_share: 1/n or 1 - 1/n, the rows with d > 0 (paper 1/2).
      time_mean, time_std: times are 1 - sigmoid(N(mean, std)) (paper -0.4, 1).
      max_guidance: w = exp(U log max_guidance) with uniform U (paper 8); 1 for none.
      latest_start, earliest_end: on rows with d > 0 start is uniform in [0, latest_start] and end
        in [earliest_end, 1] (paper 1/2 and 1/2).
      sample_guidance: the strength that samples are conditioned on. Above max_guidance the network
        was not trained with it; the released M/2 and L/2 are sampled at 10.5.
      sample_interval: the (start, end) that they are conditioned on.
      told_time: tells the network t, too. For data of a few numbers, such as actions, in which
        noise does not show.
      label_dropout: share of all rows that lose their label, and with it the guidance.
      weight_epsilon, weight_power: each summed square is divided by (itself + epsilon)^power.
    """

    name: ClassVar[str] = "improved_meanflow"
    # In the order of the official network's tokens.
    conditions: ClassVar[tuple[str, ...]] = ("guidance", "guidance_end", "guidance_start")
    differentiates: ClassVar[bool] = True
    heads: ClassVar[int] = 2
    velocity_heads: ClassVar[int] = 2
    smooth_times: ClassVar[bool] = True

    interval_share: float = 0.5
    time_mean: float = -0.4
    time_std: float = 1.0
    max_guidance: float = 8.0
    latest_start: float = 0.5
    earliest_end: float = 0.5
    sample_guidance: float = 1.0
    sample_interval: tuple[float, float] = (0.0, 1.0)
    told_time: bool = False
    label_dropout: float = 0.1
    weight_epsilon: float = 0.01
    weight_power: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            "sample_guidance",
            self.sample_guidance == 1 or self.max_guidance > 1,
            "1 where max_guidance is 1",
        )
        start, end = self.sample_interval
        self.require(
            "sample_interval",
            start <= self.latest_start and self.earliest_end <= end,
            f"a trained one: start in [0, {self.latest_start}], end in [{self.earliest_end}, 1]",
        )

    @property
    def kinds(self) -> rows.Share:
        """The rows with an interval."""
        return rows.Share(self.interval_share)

    @property
    def row_stride(self) -> int:
        return self.kinds.stride

    def draw_conditions(self, key: jax.Array, num_rows: int) -> Conditions:
        """What each row is told of its guidance."""
        guidance_key, interval_key = jax.random.split(key)
        told = told_guidance.draw(guidance_key, num_rows, self.max_guidance)
        low, high = jax.random.uniform(interval_key, (2, num_rows))
        start, end = self.latest_start * low, 1 - (1 - self.earliest_end) * high
        # Flow rows are guided at all times.
        start = self.kinds.put(jnp.zeros_like(start), self.kinds.take(start))
        end = self.kinds.put(jnp.ones_like(end), self.kinds.take(end))
        return {"guidance": told, "guidance_start": start, "guidance_end": end}

    def velocities(
        self,
        inputs: base.Inputs,
        xt: Rows,
        t: Scalars,
        v: Rows,
        labels: Labels,
        told: Conditions,
    ) -> tuple[jax.Array, jax.Array]:
        """(v_g, v_c), each [B, H, W, C], for velocities v = x_1 - x_0.

        Args:
          inputs: for the network, with its trained weights, and the null label.
          xt: [B, H, W, C], at times t [B].
          t: [B].
          v: [B, H, W, C].
          labels: [B], none of them dropped.
          told: from `draw_conditions`.
        """
        params, zero = base.frozen(inputs, ""), jnp.zeros_like(t)
        inside = (t >= told["guidance_start"]) & (t <= told["guidance_end"])
        strength = jnp.where(inside, told["guidance"], 0.0)
        always = {"guidance_start": zero, "guidance_end": jnp.ones_like(t)}
        if self.max_guidance == 1:
            out = inputs.apply(params, xt, t, zero, labels, guidance=strength, **always)
            return v, _head(out, 1)
        null = jnp.full_like(labels, inputs.null_label)
        x2, t2, d2 = (rows.append(a, a, 1) for a in (xt, t, zero))
        told2 = {name: rows.append(a, a, 1) for name, a in always.items()}
        told2["guidance"] = rows.append(strength, zero, 1)
        out = inputs.apply(params, x2, t2, d2, rows.append(labels, null, 1), **told2)
        v_c, v_null = rows.detach(_head(out, 1), 1)
        return v + base.along_rows(strength, v) * (v_c - v_null), v_c

    def compound(
        self,
        inputs: base.Inputs,
        u: jax.Array,
        xt: Rows,
        t: Scalars,
        d: Scalars,
        v_c: jax.Array,
        labels: Labels,
        told: Conditions,
    ) -> Rows:
        """V = u - d sg[Du]; gradients flow through u alone."""
        derivative = mean_velocity.total_derivative(inputs, xt, t, d, v_c, labels, **told)
        return u - base.along_rows(d, u) * _head(derivative, 0)

    def loss(self, inputs: base.Inputs) -> tuple[jax.Array, base.Metrics]:
        noise_key, time_key, label_key, told_key = jax.random.split(inputs.key, 4)
        x1, num_rows, kinds = inputs.x1, inputs.x1.shape[0], self.kinds
        x0 = jax.random.normal(noise_key, x1.shape)
        t, d = mean_velocity.draw_intervals(
            time_key, num_rows, kinds, self.time_mean, self.time_std
        )
        xt = base.path(x0, x1, t, sigma_min=0.0)
        told = self.draw_conditions(told_key, num_rows)
        v_g, v_c = self.velocities(inputs, xt, t, x1 - x0, inputs.labels, told)

        labels = mean_velocity.drop_flow_labels(label_key, inputs, kinds, self.label_dropout)
        has_label = base.along_rows(base.has_label(labels, inputs.null_label), v_g)
        v_g = jax.lax.stop_gradient(jnp.where(has_label, v_g, x1 - x0))

        out = inputs.apply(inputs.params, xt, t, d, labels, **told)
        u, v = _head(out, 0), _head(out, 1)
        some = jax.tree.map(kinds.take, (u, xt, t, d, v_c, labels, told))
        compound = kinds.put(u, self.compound(inputs, *some))

        error_u, error_v = base.sum_square(compound - v_g), base.sum_square(v - v_g)
        weight = (self.weight_epsilon, self.weight_power)
        loss = mean_velocity.adaptive(error_u, *weight) + mean_velocity.adaptive(error_v, *weight)
        metrics = {
            "loss_velocity": error_v / x1[0].size,
            "loss_interval": kinds.take(error_u) / x1[0].size,
        }
        return jnp.mean(loss), metrics

    def sample(
        self,
        velocity: base.ConditionedFn,
        x0: Rows,
        labels: Labels,
        num_steps: int,
        keys: Keys,
    ) -> Rows:
        """Euler on u, told d = 1/num_steps and the guidance of samples."""
        start, end = self.sample_interval
        told = told_guidance.telling(
            velocity,
            guidance=1 - 1 / self.sample_guidance,
            guidance_start=start,
            guidance_end=end,
        )

        def u(x: Rows, t: Scalars, d: Scalars, labels: Labels) -> Rows:
            return _head(told(x, t, d, labels), 0)

        return samplers.euler(u, x0, labels, num_steps, 1 / num_steps)


def _head(out: jax.Array, index: int) -> jax.Array:
    """One of the two velocities [..., C] of [..., 2 C]: 0 for u, 1 for v."""
    return jnp.split(out, 2, axis=-1)[index]

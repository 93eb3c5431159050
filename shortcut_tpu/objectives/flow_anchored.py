"""Flow-anchored consistency: a consistency model that keeps learning its teacher's flow."""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from shortcut_tpu.array_types import Keys, Labels, Rows, Scalars
from shortcut_tpu.objectives import base, mean_velocity, rows
from shortcut_tpu.sampling import samplers


@dataclasses.dataclass(frozen=True)
class FlowAnchored(base.Objective):
    """cos(pi t/2) || F - sg[F - (1 - t^p) clip(F - v - (1 - t) DF)] ||^2  +  anchor,

    F = u(x_t, t, 1 - t), the step to the data, D along (v, 1, -1) in (x, t, d), and v the guided
    velocity of a teacher T: v = T_null + w (T - T_null). The anchor is flow matching of the same
    network, f = u(x_t, t, 0):

        || f - v ||^2 + 1 - cos(f, v),

    with cos the cosine over the channels of each latent pixel; of one channel it is but a sign and
    is left out. The teacher is a flow-matching
    model, and the student starts from its weights.

    Source: "Flow-Anchored Consistency Models" (FACM, arXiv 2507.03738) and its official code, with
    the anchor told apart by a second time, as our d, and not by times beyond the path's. Its t is
    ours.

    The official recipe (XL/1 on VA-VAE, one-step FID 1.70): AdamW at 1e-4 with b2 .999, no weight
    decay, gradients clipped at 1, batch 1024, 400 epochs after 800 of the teacher.

    Attributes:
      time_mean, time_std: times are 1 - (2/pi) arctan(exp(N(-mean, std))) (code .8, 1.6).
      guidance: w; 1 for none (code 1.75).
      guidance_interval: the times that are guided (code from .125 on).
      relaxation: p (code 1/2).
      clip: bound on F - v - (1 - t) DF (code 1); 0 for none.
      weight_epsilon, weight_power: the first mean square is divided by (itself + epsilon)^power
        (code 1e-3, 1/2).
      label_dropout: share of rows whose label the student is not told; v is that of the label (code
        .1).
      consistency_steps: samples in up to so many steps come from consistency steps, others from
        Euler's, told d = 0.
    """

    name: ClassVar[str] = "flow_anchored"
    needs_teacher: ClassVar[bool] = True
    differentiates: ClassVar[bool] = True
    smooth_times: ClassVar[bool] = True

    time_mean: float = 0.8
    time_std: float = 1.6
    guidance: float = 1.0
    guidance_interval: tuple[float, float] = (0.125, 1.0)
    relaxation: float = 0.5
    clip: float = 1.0
    weight_epsilon: float = 1e-3
    weight_power: float = 0.5
    label_dropout: float = 0.1
    consistency_steps: int = 4

    def draw_times(self, key: jax.Array, num_rows: int) -> Scalars:
        """t of each row."""
        noise = self.time_std * jax.random.normal(key, (num_rows,)) - self.time_mean
        return 1 - 2 / math.pi * jnp.arctan(jnp.exp(noise))

    def velocities(self, inputs: base.Inputs, xt: Rows, t: Scalars) -> Rows:
        """The teacher's guided velocities at x_t."""
        teacher, ones = base.frozen(inputs, base.TEACHER), jnp.ones_like(t)
        if self.guidance == 1:
            return inputs.apply(teacher, xt, t, ones, inputs.labels)
        null = jnp.full_like(inputs.labels, inputs.null_label)
        x2, t2, d2 = (rows.append(a, a, 1) for a in (xt, t, ones))
        out = inputs.apply(teacher, x2, t2, d2, rows.append(inputs.labels, null, 1))
        v, v_null = rows.detach(out, 1)
        inside = base.along_rows(base.within(t, self.guidance_interval), v)
        return jnp.where(inside, v_null + self.guidance * (v - v_null), v)

    def targets(
        self,
        inputs: base.Inputs,
        step: Rows,
        xt: Rows,
        t: Scalars,
        v: Rows,
        labels: Labels,
    ) -> Rows:
        """Targets of the step to the data, which the network takes for `step`."""
        derivative = mean_velocity.total_derivative(inputs, xt, t, 1 - t, v, labels)
        wide_t = base.along_rows(t, xt)
        wrong = base.clipped(step - v - (1 - wide_t) * derivative, self.clip)
        return jax.lax.stop_gradient(step - (1 - wide_t**self.relaxation) * wrong)

    def loss(self, inputs: base.Inputs) -> tuple[jax.Array, base.Metrics]:
        noise_key, time_key, label_key = jax.random.split(inputs.key, 3)
        x1 = inputs.x1
        t = self.draw_times(time_key, x1.shape[0])
        xt = base.path(jax.random.normal(noise_key, x1.shape), x1, t, sigma_min=0.0)
        v = self.velocities(inputs, xt, t)
        labels = base.drop_labels(label_key, inputs.labels, self.label_dropout, inputs.null_label)

        x2, t2, y2 = (rows.append(a, a, 1) for a in (xt, t, labels))
        d2 = rows.append(1 - t, jnp.zeros_like(t), 1)
        step, flow = rows.detach(inputs.apply(inputs.params, x2, t2, d2, y2), 1)
        error = base.mean_square(step - self.targets(inputs, step, xt, t, v, labels))
        weighted = mean_velocity.adaptive(error, self.weight_epsilon, self.weight_power)
        anchor = base.mean_square(flow - v)
        loss = jnp.cos(math.pi / 2 * t) * weighted + anchor
        if x1.shape[-1] > 1:
            loss += 1 - _cosine(flow, v)
        return jnp.mean(loss), {"loss_consistency": error, "loss_anchor": anchor}

    def sample(
        self,
        velocity: base.ConditionedFn,
        x0: Rows,
        labels: Labels,
        num_steps: int,
        keys: Keys,
    ) -> Rows:
        """To the data and back with new noise, or Euler along the flow where there are many."""
        if num_steps > self.consistency_steps:
            return samplers.euler(velocity, x0, labels, num_steps, d=0.0)

        def to_the_end(x: Rows, t: Scalars, _: Scalars, labels: Labels) -> Rows:
            return velocity(x, t, 1 - t, labels)

        return samplers.consistency(to_the_end, x0, labels, num_steps, keys)


def _cosine(a: Rows, b: Rows) -> Scalars:
    """The mean cosine of two vectors of channels in each row."""
    norms = jnp.maximum(_norm(a), 1e-8) * jnp.maximum(_norm(b), 1e-8)
    cosine = jnp.sum(a * b, axis=-1) / norms
    return jnp.mean(cosine, axis=tuple(range(1, cosine.ndim)))


def _norm(a: jax.Array) -> jax.Array:
    # A root has no derivative at 0, where a network starts.
    return jnp.sqrt(jnp.sum(jnp.square(a), axis=-1) + 1e-16)

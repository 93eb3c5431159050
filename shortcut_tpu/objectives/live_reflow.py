"""Live reflow: flow matching that distills its own samples while it trains."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from shortcut_tpu.array_types import Keys, Labels, Rows, Scalars
from shortcut_tpu.objectives import base, rows
from shortcut_tpu.sampling import samplers


@dataclasses.dataclass(frozen=True)
class LiveReflow(base.Objective):
    """Flow matching at d = 1/M on data, and at d = 1 on pairs that the model makes itself.

        flow rows    || v(x_t, t, 1/M) - (x_1 - x_0) ||^2
        reflow rows  || v(z_t, t, 1) - sg[z_1 - x_0] ||^2
                     with z_1 from x_0 by n Euler steps of v(., ., 1/M), guided, and z_t between

    Source: the baseline "live reflow" of "One Step Diffusion via Shortcut Models" (arXiv
    2410.12557, Table 1 and its official code); reflow itself is "Flow Straight and Fast" (arXiv
    2209.03003). Samples of M steps are told d = 1/M, those of fewer steps d = 1.

    Attributes:
      finest_steps: M; times are multiples of 1/M.
      reflow_share: a unit fraction; every (1/share)-th row is a reflow row.
      teacher_steps: n (code 8).
      guidance: w in v_null + w (v - v_null) while z_1 is made; 1 for none.
      label_dropout: on flow rows only.
      sigma_min: noise left at t = 1 (code 1e-5, paper 0).
    """

    name: ClassVar[str] = "live_reflow"

    finest_steps: int = 128
    reflow_share: float = 0.125
    teacher_steps: int = 8
    guidance: float = 1.0
    label_dropout: float = 0.1
    sigma_min: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            "teacher_steps",
            self.teacher_steps <= self.finest_steps,
            f"at most finest_steps={self.finest_steps}",
        )

    @property
    def row_stride(self) -> int:
        return round(1 / self.reflow_share)

    def generate(self, inputs: base.Inputs, x0: Rows, labels: Labels) -> Rows:
        """z_1 from noise x_0 by the trained weights; no gradient flows into it."""
        params = jax.lax.stop_gradient(inputs.params)

        def velocity(x: Rows, t: Scalars, d: Scalars, labels: Labels) -> Rows:
            if self.guidance == 1:
                return inputs.apply(params, x, t, d, labels)
            x2, t2, d2 = (rows.append(a, a, 1) for a in (x, t, d))
            labels2 = rows.append(labels, jnp.full_like(labels, inputs.null_label), 1)
            v, v_null = rows.detach(inputs.apply(params, x2, t2, d2, labels2), 1)
            return v_null + self.guidance * (v - v_null)

        return samplers.euler(velocity, x0, labels, self.teacher_steps, 1 / self.finest_steps)

    def loss(self, inputs: base.Inputs) -> tuple[jax.Array, base.Metrics]:
        noise_key, time_key, label_key = jax.random.split(inputs.key, 3)
        x1, num_rows, stride = inputs.x1, inputs.x1.shape[0], self.row_stride
        x0 = jax.random.normal(noise_key, x1.shape)
        t = jax.random.randint(time_key, (num_rows,), 0, self.finest_steps) / self.finest_steps
        labels = base.drop_labels(label_key, inputs.labels, self.label_dropout, inputs.null_label)
        labels = rows.put(labels, stride, rows.take(inputs.labels, stride))
        d = rows.put(
            jnp.full(num_rows, 1 / self.finest_steps), stride, jnp.ones(num_rows // stride)
        )

        z0 = rows.take(x0, stride)
        z1 = self.generate(inputs, z0, rows.take(labels, stride))
        target = rows.put(base.path_velocity(x0, x1, self.sigma_min), stride, z1 - z0)
        xt = base.path(x0, rows.put(x1, stride, z1), t, self.sigma_min)

        error = base.mean_square(inputs.apply(inputs.params, xt, t, d, labels) - target)
        metrics = {"loss_flow": rows.rest(error, stride), "loss_reflow": rows.take(error, stride)}
        return jnp.mean(error), metrics

    def sample(
        self,
        velocity: base.ConditionedFn,
        x0: Rows,
        labels: Labels,
        num_steps: int,
        keys: Keys,
    ) -> Rows:
        """Euler, told d = 1/M from M steps on and d = 1 below."""
        d = 1 / self.finest_steps if num_steps >= self.finest_steps else 1.0
        return samplers.euler(velocity, x0, labels, num_steps, d)

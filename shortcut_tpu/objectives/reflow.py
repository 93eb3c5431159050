"""Reflow: flow matching on pairs that a flow-matching model made, which straightens its paths."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from shortcut_tpu.array_types import Keys, Labels, Rows
from shortcut_tpu.objectives import base
from shortcut_tpu.sampling import samplers


@dataclasses.dataclass(frozen=True)
class Reflow(base.Objective):
    """E || v(x_t, t) - (z_1 - x_0) ||^2  on  x_t = (1 - t) x_0 + t z_1,  z_1 = T(x_0).

    T is the teacher's flow from noise to data, a flow-matching model's; the student starts from its
    weights. The pairs (x_0, z_1) are `data.pairs`, made once by `generate_pairs`. Where paths from
    different noises no longer cross, one Euler step follows them.

    Source: "Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow"
    (arXiv 2209.03003, equation 1 on the coupling of section 2.2, the second rectified flow), with
    the times, label dropout and noise at t = 1 of the official code of arXiv 2410.12557, which
    trains it by the rows of flow matching. The network is told d = 1 always, as its teacher was.

    Attributes:
      finest_steps: M; times are multiples of 1/M.
      label_dropout: share of rows that lose their label.
      sigma_min: noise left at t = 1 (code 1e-5, paper 0).
    """

    name: ClassVar[str] = "reflow"
    only_step: ClassVar[float | None] = 1.0
    needs_teacher: ClassVar[bool] = True
    needs_pairs: ClassVar[bool] = True

    finest_steps: int = 128
    label_dropout: float = 0.1
    sigma_min: float = 1e-5

    def loss(self, inputs: base.Inputs) -> tuple[jax.Array, base.Metrics]:
        x0, x1 = base.noises(inputs), inputs.x1
        time_key, label_key = jax.random.split(inputs.key)
        t = jax.random.randint(time_key, x1.shape[:1], 0, self.finest_steps) / self.finest_steps
        labels = base.drop_labels(label_key, inputs.labels, self.label_dropout, inputs.null_label)
        xt = base.path(x0, x1, t, self.sigma_min)
        v = inputs.apply(inputs.params, xt, t, jnp.ones_like(t), labels)
        error = base.mean_square(v - base.path_velocity(x0, x1, self.sigma_min))
        return jnp.mean(error), {"loss_reflow": error}

    def sample(
        self,
        velocity: base.ConditionedFn,
        x0: Rows,
        labels: Labels,
        num_steps: int,
        keys: Keys,
    ) -> Rows:
        """Euler, told d = 1."""
        return samplers.euler(velocity, x0, labels, num_steps, d=1.0)

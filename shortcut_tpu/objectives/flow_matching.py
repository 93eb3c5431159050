"""Flow matching, the paper's baseline and the limit d -> 0 of a shortcut model."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from shortcut_tpu.array_types import Keys, Labels, Rows
from shortcut_tpu.objectives import base
from shortcut_tpu.sampling import samplers


@dataclasses.dataclass(frozen=True)
class FlowMatching(base.Objective):
    """E || v(x_t, t) - (x_1 - x_0) ||^2  on  x_t = (1 - t) x_0 + t x_1.

    Source: "Flow Matching for Generative Modeling" (arXiv 2210.02747, equation 23); as a baseline
    in "One Step Diffusion via Shortcut Models" (arXiv 2410.12557, equation 3 and Table 1). Times
    are drawn from the sampler's finest grid {0 .. M-1}/M. The network gets the step size 1 on
    every row and at every number of sampling steps, which is level 0: no condition.
    """

    name: ClassVar[str] = "flow_matching"
    only_step: ClassVar[float | None] = 1.0

    finest_steps: int = 128
    label_dropout: float = 0.1
    sigma_min: float = 1e-5

    def loss(self, inputs: base.Inputs) -> tuple[jax.Array, base.Metrics]:
        noise_key, time_key, label_key = jax.random.split(inputs.key, 3)
        x1, rows = inputs.x1, inputs.x1.shape[0]
        x0 = jax.random.normal(noise_key, x1.shape)
        t = jax.random.randint(time_key, (rows,), 0, self.finest_steps) / self.finest_steps
        labels = base.drop_labels(label_key, inputs.labels, self.label_dropout, inputs.null_label)

        v = inputs.apply(
            inputs.params, base.path(x0, x1, t, self.sigma_min), t, jnp.ones(rows), labels
        )
        error = base.mean_square(v - base.path_velocity(x0, x1, self.sigma_min))
        return jnp.mean(error), {"loss_flow": error}

    def sample(
        self,
        velocity: base.ConditionedFn,
        x0: Rows,
        labels: Labels,
        num_steps: int,
        keys: Keys,
    ) -> Rows:
        """Euler, told the one step size that was trained."""
        return samplers.euler(velocity, x0, labels, num_steps, d=1.0)

"""Offline distillation into a Generative Equilibrium Transformer: regression from noise to data."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from shortcut_tpu.array_types import Keys, Labels, Rows
from shortcut_tpu.objectives import base


@dataclasses.dataclass(frozen=True)
class GenerativeEquilibrium(base.Objective):
    """sum_k g^(n-k) | y^k(x_0) - z_1 |,  y^k the sample after iteration k = 1 .. n of the network.

    z_1 is what a teacher made of the noise x_0; the pairs are `data.pairs`, made once by
    `generate_pairs`. Nothing else of the teacher is needed, and there is no time.

    Source: "One-Step Diffusion Distillation via Deep Equilibrium Models" (arXiv 2401.08639,
    section 4 for the loss on pairs, official code for that of the iterates). The mean over pixels
    is an L1 norm; the weights g^(n-k) are not normalised. Departure: no perceptual loss, which the
    paper has on pixels only.

    Attributes:
      iterate_decay: g, the weight of an iterate over that of the next one (code 0.8).
    """

    name: ClassVar[str] = "get"
    group: ClassVar[str] = "equilibrium"
    network: ClassVar[str] = "equilibrium"
    needs_pairs: ClassVar[bool] = True
    one_step: ClassVar[bool] = True

    iterate_decay: float = 0.8

    def loss(self, inputs: base.Inputs) -> tuple[jax.Array, base.Metrics]:
        x0, x1 = base.noises(inputs), inputs.x1
        zero, one = jnp.zeros(len(x1)), jnp.ones(len(x1))
        iterates = inputs.apply(inputs.params, x0, zero, one, inputs.labels)
        iterates = iterates.reshape(*x1.shape[:-1], -1, x1.shape[-1])
        error = jnp.mean(jnp.abs(iterates - x1[..., None, :]), axis=(1, 2, 4))
        age = jnp.arange(error.shape[1])[::-1]
        weighted = jnp.sum(error * self.iterate_decay**age, axis=1)
        return jnp.mean(weighted), {"loss_iterates": weighted, "loss_sample": error[:, -1]}

    def sample(
        self,
        velocity: base.ConditionedFn,
        x0: Rows,
        labels: Labels,
        num_steps: int,
        keys: Keys,
    ) -> Rows:
        """The last iterate; `num_steps` is 1."""
        rows = x0.shape[0]
        return velocity(x0, jnp.zeros(rows), jnp.ones(rows), labels)[..., -x0.shape[-1] :]

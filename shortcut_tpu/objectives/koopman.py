"""Offline Koopman distillation: codes of noise and data, and a matrix between them."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from shortcut_tpu.array_types import Keys, Labels, Rows
from shortcut_tpu.objectives import base


@dataclasses.dataclass(frozen=True)
class KoopmanDistillation(base.Objective):
    """a || z_0 - z_p ||^2 + b || D(z_0 + s n, y) - z_1 ||^2 + c || D(z_p, y) - z_1 ||^2.

    z_0 = E_0(z_1, y), z_p = K (E_T(x_0, y) + s n') + c_y, with n and n' standard normal: x_0 is
    noise, z_1 what a teacher made of it under the label y, E_0 and E_T encode them, D decodes, K is
    a matrix and c_y a vector of the label. A sample is D(K E_T(x_0, y) + c_y, y). The pairs are
    `data.pairs`, made once by `generate_pairs`; nothing else of the teacher is needed.

    Source: "One-Step Offline Distillation of Diffusion-based Models via Koopman Modeling" (arXiv
    2505.13358, section 4, and its official code for s, for which codes it is added to, for where
    the label enters, for dropout, and for K's factors and start). Departures: squares in the place
    of LPIPS, which knows images and not latents; no adversarial term, a hundredth of the paper's
    loss, which takes an optimizer of its own.

    Attributes:
      latent_noise: s (code 0.4), on both codes while training.
      dropout: share of the hidden activations of encoders and decoder that a training step leaves
        out (code 0.1).
      latent_weight: a (code 1).
      reconstruction_weight: b (code 1).
      push_weight: c (code 1).
    """

    name: ClassVar[str] = "koopman"
    network: ClassVar[str] = "koopman"
    needs_pairs: ClassVar[bool] = True
    one_step: ClassVar[bool] = True

    latent_noise: float = 0.4
    dropout: float = 0.1
    latent_weight: float = 1.0
    reconstruction_weight: float = 1.0
    push_weight: float = 1.0

    def loss(self, inputs: base.Inputs) -> tuple[jax.Array, base.Metrics]:
        x0, x1 = base.noises(inputs), inputs.x1
        parts = inputs.model.parts(
            inputs.params, x0, x1, inputs.labels, inputs.key, self.latent_noise, self.dropout
        )
        latent = base.mean_square(parts.code - parts.pushed)
        reconstruction = base.mean_square(parts.of_code - x1)
        push = base.mean_square(parts.of_pushed - x1)
        loss = (
            self.latent_weight * latent
            + self.reconstruction_weight * reconstruction
            + self.push_weight * push
        )
        metrics = {"loss_latent": latent, "loss_reconstruction": reconstruction, "loss_push": push}
        return jnp.mean(loss), metrics

    def sample(
        self,
        velocity: base.ConditionedFn,
        x0: Rows,
        labels: Labels,
        num_steps: int,
        keys: Keys,
    ) -> Rows:
        """D(K E_T(x_0, y) + c_y, y); `num_steps` is 1."""
        rows = x0.shape[0]
        return velocity(x0, jnp.zeros(rows), jnp.ones(rows), labels)

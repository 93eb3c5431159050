"""Offline Koopman distillation: codes of noise and data, and a matrix between them."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from shortcut_tpu.objectives import base


@dataclasses.dataclass(frozen=True)
class KoopmanDistillation(base.Objective):
    """a || z_0 - z_p ||^2 + b || D(z_0 + s n) - z_1 ||^2 + c || D(z_p) - z_1 ||^2.

    z_0 = E_0(z_1), z_p = K (E_T(x_0) + s n') + c_y, with n and n' standard normal: x_0 is noise,
    z_1 what a teacher made of it, E_0 and E_T encode them, D decodes, K is a matrix and c_y a
    vector of the label. A sample is D(K E_T(x_0) + c_y). The pairs are `data.pairs`, made once by
    `generate_pairs`; nothing else of the teacher is needed.

    Source: "One-Step Offline Distillation of Diffusion-based Models via Koopman Modeling" (arXiv
    2505.13358, section 4, and its official code for s, for which codes it is added to, and for the
    label). Departures: squares in the place of LPIPS, which knows images and not latents; no
    adversarial term, a hundredth of the paper's loss, which takes an optimizer of its own.

    Attributes:
      latent_noise: s (code 0.4), on both codes while training.
      latent_weight: a (code 1).
      reconstruction_weight: b (code 1).
      push_weight: c (code 1).
    """

    name: ClassVar[str] = "koopman"
    network: ClassVar[str] = "koopman"
    needs_pairs: ClassVar[bool] = True
    one_step: ClassVar[bool] = True

    latent_noise: float = 0.4
    latent_weight: float = 1.0
    reconstruction_weight: float = 1.0
    push_weight: float = 1.0

    def loss(self, inputs: base.Inputs) -> tuple[jax.Array, base.Metrics]:
        x0, x1 = base.noises(inputs), inputs.x1
        parts = inputs.model.parts(
            inputs.params, x0, x1, inputs.labels, inputs.key, self.latent_noise
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
        x0: jax.Array,
        labels: jax.Array,
        num_steps: int,
        keys: jax.Array,
    ) -> jax.Array:
        """D(K E_T(x_0) + c_y); `num_steps` is 1."""
        rows = x0.shape[0]
        return velocity(x0, jnp.zeros(rows), jnp.ones(rows), labels)

"""Denoising diffusion with DiT's schedule, the paper's oldest baseline."""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from shortcut_tpu.array_types import Keys, Labels, Rows, Scalars
from shortcut_tpu.objectives import base
from shortcut_tpu.sampling import samplers


@dataclasses.dataclass(frozen=True)
class Diffusion(base.Objective):
    """E || e(x_t, t) - x_0 ||^2  on  x_t = sqrt(a_t) x_1 + sqrt(1 - a_t) x_0.

    Source: "Denoising Diffusion Probabilistic Models" (arXiv 2006.11239, equation 14) with the
    schedule of DiT (arXiv 2212.09748, section 4): a_k is the product of 1 - beta over linearly
    spaced betas. The papers count k = 0 .. N-1 from data to noise; here t = 1 - (k + 1)/N, so that
    t = 0 is the noisiest step and a at t = 1 is 1. The network predicts the noise x_0, not a
    velocity; guidance while sampling mixes noises in the same way. The variance of a step is fixed:
    DiT's network predicts it as well, and its loss has a term for that, which are left out. Samples
    come from DDIM. The network is told d = 1 always.

    Attributes:
      diffusion_steps: N.
      beta_first: beta of the step next to the data.
      beta_last: beta of the noisiest step.
      label_dropout: share of rows that lose their label.
    """

    name: ClassVar[str] = "diffusion"
    only_step: ClassVar[float | None] = 1.0

    diffusion_steps: int = 1000
    beta_first: float = 1e-4
    beta_last: float = 0.02
    label_dropout: float = 0.1

    @functools.cached_property
    def _alpha_bars(self) -> np.ndarray:
        """a at t = 1, (N-1)/N, ..., 0, computed in float64."""
        betas = np.linspace(self.beta_first, self.beta_last, self.diffusion_steps)
        return np.concatenate([[1.0], np.cumprod(1 - betas)])

    def _nearest(self, t: jax.Array) -> jax.Array:
        """k + 1 of the step k that is nearest to t; 0 for the data."""
        return jnp.rint((1 - jnp.asarray(t)) * self.diffusion_steps).astype(int)

    def alpha_bar(self, t: jax.Array) -> jax.Array:
        """a_t, the share of the signal in the variance, at the nearest step to t."""
        return jnp.asarray(self._alpha_bars)[self._nearest(t)]

    def loss(self, inputs: base.Inputs) -> tuple[jax.Array, base.Metrics]:
        noise_key, time_key, label_key = jax.random.split(inputs.key, 3)
        x1, rows = inputs.x1, inputs.x1.shape[0]
        x0 = jax.random.normal(noise_key, x1.shape)
        t = jax.random.randint(time_key, (rows,), 0, self.diffusion_steps) / self.diffusion_steps
        labels = base.drop_labels(label_key, inputs.labels, self.label_dropout, inputs.null_label)

        a = base.along_rows(self.alpha_bar(t), x1)
        xt = jnp.sqrt(a) * x1 + jnp.sqrt(1 - a) * x0
        error = base.mean_square(inputs.apply(inputs.params, xt, t, jnp.ones(rows), labels) - x0)
        return jnp.mean(error), {"loss_noise": error}

    def sample(
        self,
        velocity: base.ConditionedFn,
        x0: Rows,
        labels: Labels,
        num_steps: int,
        keys: Keys,
    ) -> Rows:
        """DDIM over `num_steps` equally spaced times, each at the step nearest to it."""

        def epsilon(x: Rows, t: Scalars, d: Scalars, labels: Labels) -> Rows:
            """The network, told the time of the step whose alpha-bar x has."""
            return velocity(x, 1 - self._nearest(t) / self.diffusion_steps, d, labels)

        return samplers.ddim(epsilon, x0, labels, num_steps, self.alpha_bar)

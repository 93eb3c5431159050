"""Samples whose noise lies between the noises of two others.

Usage:
  generator = InterpolatingGenerator(experiment, autoencoder, seed=0, points=10)
  images = generator(params, range(20), labels, num_steps=1)    # two rows of ten points
"""

from typing import Any

import jax
import jax.numpy as jnp

from shortcut_tpu.evaluation.generator import Generator, sample_noise


class InterpolatingGenerator(Generator):
    """Sample r * points + c lies at i = c / (points - 1) between the noises of two samples.

        x_0 = sqrt(1 - i^2) e_{2r} + i e_{2r+1}

    Source: arXiv 2410.12557, the interpolation of its figures. The squares of the factors add up
    to 1, so that x_0 is standard normal at every i, as on the great circle between two orthogonal
    noises.
    """

    def __init__(self, *args: Any, points: int, **kwargs: Any):
        """As a Generator's, with the number of points between two samples, both ends included."""
        super().__init__(*args, **kwargs)
        self._points = points

    def noise(self, indices: jax.Array) -> jax.Array:
        shape = self.experiment.latent_shape
        pair, point = indices // self._points, indices % self._points
        i = (point / (self._points - 1)).reshape(-1, *(1 for _ in shape))
        first, second = (sample_noise(self.seed, 2 * pair + end, shape) for end in (0, 1))
        return jnp.sqrt(1 - i**2) * first + i * second

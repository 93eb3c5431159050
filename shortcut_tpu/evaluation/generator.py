"""Samples from noise to images in one jitted, sharded program for each number of steps.

Sample i is a function of (seed, i): the same noise at every step count, batch size and mesh.

Usage:
  generator = Generator(experiment, autoencoder)
  images = generator.images(params, indices, labels, num_steps=4)
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline.autoencoders import Autoencoder
from shortcut_tpu import partitioning, samplers
from shortcut_tpu.experiment import Experiment

# Folded into the seed's key in place of a step that no run reaches.
_SAMPLING_STREAM = 2**32 - 1

ImageFn = Callable[[jax.Array], jax.Array]


def sample_keys(seed: int | jax.Array, indices: jax.Array) -> jax.Array:
    """Random keys [B] of the samples with these indices."""
    stream = jax.random.fold_in(jax.random.key(seed), _SAMPLING_STREAM)
    return jax.vmap(lambda index: jax.random.fold_in(stream, index))(indices)


def sample_noise(seed: int | jax.Array, indices: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """x_0 [B, *shape] of the samples with these indices."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(sample_keys(seed, indices))


class Generator:
    """The sampler of an experiment, its autoencoder's decoder behind it."""

    def __init__(
        self,
        experiment: Experiment,
        autoencoder: Autoencoder,
        *,
        guidance: float = 1.0,
        seed: int | jax.Array,
    ):
        self.experiment = experiment
        self._autoencoder = autoencoder
        self._guidance = guidance
        self._seed = seed

    def latents(
        self, params: Any, indices: jax.Array, labels: jax.Array, num_steps: int
    ) -> jax.Array:
        """x_1 [B, H, W, C] of some samples, as the model sees it; call it inside jit."""
        return self.from_noise(params, self.noise(indices), indices, labels, num_steps)

    def noise(self, indices: jax.Array) -> jax.Array:
        """x_0 [B, H, W, C] of some samples."""
        return sample_noise(self._seed, indices, self.experiment.latent_shape)

    def from_noise(
        self,
        params: Any,
        x0: jax.Array,
        indices: jax.Array,
        labels: jax.Array,
        num_steps: int,
    ) -> jax.Array:
        """x_1 [B, H, W, C] from noises that are given; call it inside jit."""
        model = self.experiment.model
        velocity = samplers.guided(
            functools.partial(model.apply, params), self._guidance, model.null_label
        )
        keys = sample_keys(self._seed, indices)
        return self.experiment.objective.sample(velocity, x0, labels, num_steps, keys)

    @functools.cache  # noqa: B019  (a generator lives as long as its command)
    def program(self, num_steps: int, consume: ImageFn | None = None) -> Any:
        """Jitted (params, indices [B], labels [B]) -> `consume` of the images, or the images."""
        rows = partitioning.rows(self.experiment.mesh)

        def generate(params: Any, indices: jax.Array, labels: jax.Array) -> jax.Array:
            x1 = self.latents(params, indices, labels, num_steps)
            images = jnp.asarray(self._autoencoder.decode(x1 / self.experiment.latent_scale))
            return consume(images) if consume else images

        return jax.jit(self.experiment.placed(generate), out_shardings=rows)

    def __call__(
        self,
        params: Any,
        indices: Sequence[int] | np.ndarray,
        labels: Sequence[int] | np.ndarray,
        num_steps: int,
        consume: ImageFn | None = None,
    ) -> np.ndarray:
        """Images (or what `consume` makes of them) of some samples, on every host.

        Any number of samples: the rows are padded to whole shares of the devices and cut again.
        """
        count = len(indices)
        pad = -count % partitioning.row_shards(self.experiment.mesh)
        rows = partitioning.rows(self.experiment.mesh)
        on_mesh = [
            jax.make_array_from_callback((count + pad,), rows, np.pad(a, (0, pad)).__getitem__)
            for a in (np.asarray(indices, np.uint32), np.asarray(labels, np.int32))
        ]
        out = self.program(num_steps, consume)(params, *on_mesh)
        return np.asarray(self._everywhere(out))[:count]

    @functools.cached_property
    def _everywhere(self) -> Any:
        """Gathers an array whole onto every host."""
        return jax.jit(
            lambda array: array, out_shardings=partitioning.replicated(self.experiment.mesh)
        )


def make_generator(
    experiment: Experiment, autoencoder: Autoencoder, seed: int | None = None
) -> Generator:
    """The generator that the config describes; its noises come from the run's seed by default."""
    config = experiment.config
    return Generator(
        experiment,
        autoencoder,
        guidance=config.evaluation.guidance,
        seed=config.seed if seed is None else seed,
    )


def balanced_labels(num_samples: int, num_classes: int) -> np.ndarray:
    """[num_samples] int32: every class as often as any other, to within one."""
    return balanced_labels_of(np.arange(num_samples), num_classes)


def balanced_labels_of(indices: np.ndarray, num_classes: int) -> np.ndarray:
    """The labels [B] int32 of the samples with these indices [B]."""
    return (indices % num_classes).astype(np.int32)


def unit_to_uint8(images: np.ndarray) -> np.ndarray:
    """Images in [-1, 1] to 0 .. 255, clipped and rounded."""
    return np.rint(np.clip(images * 127.5 + 127.5, 0, 255)).astype(np.uint8)

"""Generates samples on the devices, in programs that are sharded by rows.

Only sampling is compiled for each number of steps. A decoder takes a TPU's compiler minutes, what
is measured of images another: they are programs of their own, and nothing leaves the devices
between them. Sample i is a function of (seed, i): the same noise at every step count, batch size
and mesh.

Usage:
  generator = Generator(experiment, autoencoder, seed=0)
  images = generator(params, indices, labels, num_steps=4)
"""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline.autoencoders import Autoencoder
from data_pipeline.errors import UserError
from shortcut_tpu.evaluation.rows import Pending, submit
from shortcut_tpu.pod import partitioning
from shortcut_tpu.sampling import samplers
from shortcut_tpu.sampling.guidance import NO_GUIDANCE, Guidance
from shortcut_tpu.training.experiment import Experiment

# Folded into the seed's key in place of a step that no run reaches.
_SAMPLING_STREAM = 2**32 - 1


class Consumer(Protocol):
    """What is made of images where they are.

    `weights` are handed to `compute` as an argument: a program that holds them as constants is
    large, and slow to compile.
    """

    @property
    def weights(self) -> Any:
        """Arrays, in any tree."""

    def __hash__(self) -> int: ...

    def compute(self, weights: Any, images: jax.Array) -> Any:
        """Images [B, H, W, C] in about [-1, 1] to arrays [B, ...] in any tree."""


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
        guidance: Guidance = NO_GUIDANCE,
        seed: int | jax.Array,
    ):
        """Prepares a sampler; nothing is compiled before it is called.

        Args:
          experiment: the parts of the run.
          autoencoder: decodes the samples.
          guidance: classifier-free, by number of sampling steps.
          seed: of the noises.

        Raises:
          UserError: the experiment's network makes no images.
        """
        if len(experiment.latent_shape) != 3:
            raise UserError(
                "this config's network makes actions and no images; `python -m"
                " shortcut_tpu.rollout` scores and draws them"
            )
        self.experiment = experiment
        self._autoencoder = autoencoder
        self.guidance = guidance
        self.seed = seed

    def latents(
        self, params: Any, indices: jax.Array, labels: jax.Array, num_steps: int
    ) -> jax.Array:
        """x_1 [B, H, W, C] of some samples, as the model sees it; call it inside jit."""
        return self.from_noise(params, self.noise(indices), indices, labels, num_steps)

    def noise(self, indices: jax.Array) -> jax.Array:
        """x_0 [B, H, W, C] of some samples."""
        return sample_noise(self.seed, indices, self.experiment.latent_shape)

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
            functools.partial(model.apply, params),
            self.guidance.at(num_steps),
            model.null_label,
            self.guidance.interval,
        )
        keys = sample_keys(self.seed, indices)
        return self.experiment.objective.sample(velocity, x0, labels, num_steps, keys)

    @functools.cache  # noqa: B019  (a generator lives as long as its command)
    def program(self, num_steps: int) -> Any:
        """Jitted (params, indices [B], labels [B]) -> x_1 [B, H, W, C]."""

        def generate(params: Any, indices: jax.Array, labels: jax.Array) -> jax.Array:
            return self.latents(params, indices, labels, num_steps)

        return jax.jit(self.experiment.placed(generate), out_shardings=self._rows)

    @functools.cached_property
    def decoding(self) -> Any:
        """Jitted (decoder's weights, x_1 [B, H, W, C]) -> images; the same at any step count."""

        def decode(weights: Any, x1: jax.Array) -> jax.Array:
            latents = self.experiment.scaling.stored(x1)
            return jnp.asarray(self._autoencoder.decode_with(weights, latents))

        return jax.jit(decode, out_shardings=self._rows)

    @functools.cache  # noqa: B019
    def consuming(self, consumer: Consumer) -> Any:
        """Jitted (consumer's weights, images [B, H, W, C]) -> what becomes of them."""

        def consume(weights: Any, images: jax.Array) -> Any:
            return consumer.compute(weights, images)

        return jax.jit(consume, out_shardings=self._rows)

    @property
    def _rows(self) -> jax.sharding.Sharding:
        return partitioning.rows(self.experiment.mesh)

    def submit(
        self,
        params: Any,
        indices: Sequence[int] | np.ndarray,
        labels: Sequence[int] | np.ndarray,
        num_steps: int,
        consumer: Consumer | None = None,
    ) -> Pending:
        """Starts on some samples, any number of them."""

        def images(indices: jax.Array, labels: jax.Array) -> Any:
            made = self.decoding(self._decoder, self.program(num_steps)(params, indices, labels))
            return self.consuming(consumer)(self._weights(consumer), made) if consumer else made

        arrays = np.asarray(indices, np.uint32), np.asarray(labels, np.int32)
        return submit(self.experiment.mesh, images, *arrays)

    def __call__(
        self,
        params: Any,
        indices: Sequence[int] | np.ndarray,
        labels: Sequence[int] | np.ndarray,
        num_steps: int,
    ) -> np.ndarray:
        """Images [n, H, W, C] of some samples, on every host."""
        images: np.ndarray = self.submit(params, indices, labels, num_steps).result()
        return images

    def rows_at_once(self, batch_size: int, count: int) -> int:
        """Rows of a program that makes `count` samples, which all devices share alike."""
        shards = partitioning.row_shards(self.experiment.mesh)
        return max(min(batch_size, count) // shards, 1) * shards

    def images(self, params: Any, labels: np.ndarray, num_steps: int, rows: int) -> np.ndarray:
        """Samples 0 .. n - 1 [n, H, W, C] of labels [n], on every host.

        By the program that makes `rows` samples: another would be compiled for fewer, which takes
        minutes on a TPU.
        """
        labels, count = np.resize(labels, max(rows, len(labels))), len(labels)
        pending = self.submit(params, np.arange(len(labels)), labels, num_steps)
        images: np.ndarray = dataclasses.replace(pending, count=count).result()
        return images

    def decoded(self, latents: np.ndarray, rows: int) -> np.ndarray:
        """Images [n, H, W, C] of latents [n, H, W, C] as they are stored, on every host.

        By the program that decodes samples, if `rows` at a time is how they are made: another
        would be compiled for other batches, which takes minutes on a TPU.
        """
        images = []
        for start in range(0, len(latents), rows):
            stored = jnp.asarray(latents[start : start + rows], jnp.float32)
            batch = np.asarray(self.experiment.scaling.seen(stored))
            whole = np.resize(batch, (rows, *batch.shape[1:]))
            decode = functools.partial(self.decoding, self._decoder)
            pending = submit(self.experiment.mesh, decode, whole)
            images.append(dataclasses.replace(pending, count=len(batch)).result())
        return np.concatenate(images)

    @functools.cached_property
    def _decoder(self) -> Any:
        """The decoder's weights, whole on every device."""
        return partitioning.replicate(self.experiment.mesh, dict(self._autoencoder.decoder_weights))

    @functools.cache  # noqa: B019
    def _weights(self, consumer: Consumer) -> Any:
        """The consumer's weights, whole on every device."""
        return partitioning.replicate(self.experiment.mesh, consumer.weights)


def make_generator(
    experiment: Experiment,
    autoencoder: Autoencoder,
    seed: int | None = None,
    guidance: Guidance | None = None,
) -> Generator:
    """The generator that the config describes; its noises come from the run's seed by default."""
    config = experiment.config
    return Generator(
        experiment,
        autoencoder,
        guidance=Guidance.of(config.evaluation) if guidance is None else guidance,
        seed=config.seed if seed is None else seed,
    )


def unit_to_uint8(images: np.ndarray) -> np.ndarray:
    """Images in [-1, 1] to 0 .. 255, clipped and rounded; what is no number is black."""
    levels = np.rint(np.clip(images * 127.5 + 127.5, 0, 255))
    return np.nan_to_num(levels).astype(np.uint8)

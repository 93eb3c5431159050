"""Distances of a model's samples to the data, at any list of step counts.

Usage:
  evaluator = Evaluator(generator, features, reference, num_samples=2000, batch_size=500)
  for num_steps in (1, 2, 4):
    distance = evaluator.distance(params, num_steps)
"""

from collections.abc import Callable, Sequence
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline.autoencoders import Autoencoder
from data_pipeline.errors import UserError
from data_pipeline.records import LatentReader
from shortcut_tpu import partitioning
from shortcut_tpu.evaluation.distances import GaussianStatistics, frechet_distance
from shortcut_tpu.evaluation.features import Features, make_features
from shortcut_tpu.evaluation.generator import Generator, balanced_labels

_REFERENCE_BATCH = 1024


def reference_statistics(
    directory: str | os.PathLike[str], autoencoder: Autoencoder, features: Features
) -> GaussianStatistics:
    """Statistics of all records of a folder, decoded, each once and not mirrored."""
    reader = LatentReader(directory)
    shape = reader.manifest.autoencoder["image_shape"]
    statistics = GaussianStatistics.empty(features.dimension(tuple(shape)))
    compute = jax.jit(lambda latents: features(jnp.asarray(autoencoder.decode(latents))))
    for start in range(0, len(reader), _REFERENCE_BATCH):
        stop = min(start + _REFERENCE_BATCH, len(reader))
        latents = reader.read(np.arange(start, stop))["mean"].astype(np.float32)
        statistics = statistics.add(np.asarray(compute(latents)))
    return statistics


class Evaluator:
    """Scores parameters by a Frechet distance on class-balanced samples."""

    def __init__(
        self,
        generator: Generator,
        features: Features,
        reference: GaussianStatistics,
        *,
        num_samples: int,
        batch_size: int,
    ):
        shards = partitioning.row_shards(generator.experiment.mesh)
        self._generator = generator
        self._features = features
        self._reference = reference
        self._num_samples = num_samples
        self._batch_size = max(min(batch_size, num_samples) // shards, 1) * shards
        self._labels = balanced_labels(num_samples, generator.experiment.config.data.num_classes)

    @property
    def metric(self) -> str:
        return self._features.name

    @property
    def num_samples(self) -> int:
        return self._num_samples

    def distance(
        self, params: Any, num_steps: int, progress: Callable[[int], None] = lambda more: None
    ) -> float:
        """The distance at a number of sampling steps.

        Args:
          params: usually the evaluation average.
          num_steps: sampling steps.
          progress: called with how many more steps of samples are done.
        """
        statistics = GaussianStatistics.empty(len(self._reference.total))
        for start in range(0, self._num_samples, self._batch_size):
            stop = min(start + self._batch_size, self._num_samples)
            # A short last batch is filled up, so that it needs no program of its own.
            indices = np.arange(start, start + self._batch_size)
            labels = np.resize(self._labels[start:stop], self._batch_size)
            features = self._generator(params, indices, labels, num_steps, self._features)
            statistics = statistics.add(features[: stop - start])
            progress((stop - start) * num_steps)
        return frechet_distance(statistics, self._reference)


def make_evaluator(
    generator: Generator, autoencoder: Autoencoder, *, protocol: str, num_samples: int
) -> Evaluator:
    """An evaluator against all records of the run's data.

    Raises:
      UserError: the protocol is unknown, or the data are missing.
    """
    config = generator.experiment.config
    features = make_features(protocol)
    if num_samples < 2:
        raise UserError(f"num_samples={num_samples}: a covariance needs at least 2 samples")
    return Evaluator(
        generator,
        features,
        reference_statistics(config.data.path, autoencoder, features),
        num_samples=num_samples,
        batch_size=config.evaluation.batch_size,
    )


def table(metric: str, distances: dict[int, float]) -> Sequence[str]:
    """Lines that show distances by number of steps."""
    width = max(len(metric), 9)
    header = f"{'steps':>{width}} " + "".join(f"{n:>9}" for n in distances)
    row = f"{metric:>{width}} " + "".join(f"{d:>9.4g}" for d in distances.values())
    return header, row

"""Scores a model's samples against real images at given numbers of sampling steps.

Usage:
  evaluator = make_evaluator(generator, autoencoder, protocol="fd_pixel", num_samples=2000)
  for num_steps in (1, 2, 4):
    scores = evaluator.scores(params, num_steps)  # {"fd_pixel": 0.12}
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import copy
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from data_pipeline import staging
from data_pipeline.autoencoders import Autoencoder
from data_pipeline.errors import UserError
from shortcut_tpu.evaluation.features import POOL, Features, load_features
from shortcut_tpu.evaluation.generator import Generator
from shortcut_tpu.evaluation.images import as_reference, record_sums, sample_sums
from shortcut_tpu.evaluation.labels import make_labels
from shortcut_tpu.evaluation.protocols import get_protocol, to_bytes
from shortcut_tpu.evaluation.reference import Reference, holds_images, load_reference
from shortcut_tpu.evaluation.rows import Pending, ahead
from shortcut_tpu.evaluation.sample_files import SampleWriter
from shortcut_tpu.evaluation.sums import Sums, distances
from shortcut_tpu.evaluation.unfinished import Unfinished
from shortcut_tpu.pod.distributed import from_first
from shortcut_tpu.sampling.guidance import Guidance

IMAGES = "images"
_REFERENCE_BATCH = 1024


@dataclasses.dataclass(frozen=True, eq=False)
class WithImages:
    """A consumer that gives the images too, as bytes [n, H, W, C]."""

    features: Features

    @property
    def weights(self) -> Mapping[str, Any]:
        return self.features.weights

    def compute(self, weights: Any, images: jax.Array) -> dict[str, jax.Array]:
        found = self.features.compute(weights, images)
        return found | {IMAGES: to_bytes(images).astype(jnp.uint8)}


class Evaluator:
    """Scores parameters by a protocol; numbers are the same on every host."""

    def __init__(
        self,
        generator: Generator,
        features: Features,
        reference: Reference,
        *,
        image_shape: tuple[int, ...],
        labels: np.ndarray,
        batch_size: int,
        facts: Mapping[str, Any],
        unfinished: Unfinished | None = None,
    ):
        """Compiles and samples nothing yet.

        Args:
          generator: makes samples.
          features: what is measured of them.
          reference: what they are compared with.
          image_shape: [H, W, C] of a sample.
          labels: [num_samples] of the samples.
          batch_size: samples at a time, over all devices.
          facts: all that the samples' features depend on but the parameters, for reports.
          unfinished: keeps sums, so that another process can go on.
        """
        self.features = features
        self.reference = reference
        self.image_shape = image_shape
        self._generator = generator
        self._labels = labels
        self._batch_size = generator.rows_at_once(batch_size, len(labels))
        self.facts = facts
        self._unfinished = unfinished

    @property
    def metric(self) -> str:
        """The main distance."""
        return self.features.protocol.metric

    @property
    def num_samples(self) -> int:
        return len(self._labels)

    @property
    def guidance(self) -> Guidance:
        """Of the samples, by number of steps."""
        return self._generator.guidance

    @property
    def unfinished(self) -> Unfinished:
        """What keeps the sums, where there is something."""
        assert self._unfinished is not None
        return self._unfinished

    def scores(
        self,
        params: Any,
        num_steps: int,
        progress: Callable[[int], None] = lambda more: None,
        writer: SampleWriter | None = None,
    ) -> dict[str, float]:
        """The protocol's distances by name at a number of sampling steps, the main one first.

        Args:
          params: usually the evaluation average.
          num_steps: sampling steps.
          progress: called with how many more steps of samples are done.
          writer: gets the samples too.
        """
        first = jax.process_index() == 0
        sums = self._start(num_steps, writer)
        start = from_first(sums.count)
        progress(start * num_steps)
        consumer = WithImages(self.features) if writer else self.features
        for outputs in ahead(self._samples(params, start, num_steps, consumer)):
            if first:
                if writer:
                    writer.put(sums.count, outputs[IMAGES])
                sums = sums.add(outputs)
                if self._unfinished and (self._unfinished.due() or sums.count == self.num_samples):
                    if writer:
                        writer.flush()
                    self._unfinished.save(str(num_steps), sums)
            progress(len(outputs[POOL]) * num_steps)
        return from_first(distances(sums, self.reference, self.features.protocol) if first else {})

    def distance(
        self, params: Any, num_steps: int, progress: Callable[[int], None] = lambda more: None
    ) -> float:
        """The main distance at a number of sampling steps; see `scores`."""
        return self.scores(params, num_steps, progress)[self.metric]

    def first_batch(
        self, params: Any, num_steps: int, progress: Callable[[int], None] = lambda more: None
    ) -> None:
        """`scores` of the samples of one batch, which say nothing but that there are some."""
        few = copy.copy(self)
        few._labels, few._unfinished = self._labels[: self._batch_size], None
        few.scores(params, num_steps, progress)

    def images(self, params: Any, labels: np.ndarray, num_steps: int) -> np.ndarray:
        """Samples 0 .. n - 1 [n, H, W, C] of labels [n], on every host."""
        return self._generator.images(params, labels, num_steps, self._batch_size)

    def decoded(self, latents: np.ndarray) -> np.ndarray:
        """Images [n, H, W, C] of stored latents, on every host, by the programs of `scores`."""
        return self._generator.decoded(latents, self._batch_size)

    def _start(self, num_steps: int, writer: SampleWriter | None) -> Sums:
        """What an earlier process left, or nothing."""
        if self._unfinished and jax.process_index() == 0 and not (writer and writer.new):
            found = self._unfinished.load(str(num_steps))
            if found is not None and found.count <= self.num_samples:
                return found
        # All vectors: precision and recall are of every sample.
        every = 1 if self.reference.vectors is not None else 0
        return Sums.empty(self.features, self.image_shape, self.num_samples, every=every)

    def _samples(
        self, params: Any, first: int, num_steps: int, consumer: Features | WithImages
    ) -> Iterator[Pending]:
        for start in range(first, self.num_samples, self._batch_size):
            stop = min(start + self._batch_size, self.num_samples)
            # A short last batch is filled up, so that it needs no program of its own.
            indices = np.arange(start, start + self._batch_size)
            labels = np.resize(self._labels[start:stop], self._batch_size)
            pending = self._generator.submit(params, indices, labels, num_steps, consumer)
            yield dataclasses.replace(pending, count=stop - start)


def make_evaluator(
    generator: Generator,
    autoencoder: Autoencoder,
    *,
    protocol: str,
    num_samples: int,
    features: str = "",
    reference: str = "",
    balance: str = "",
    unfinished: Callable[[Mapping[str, Any]], Unfinished] | None = None,
) -> Evaluator:
    """An evaluator by a protocol.

    Args:
      generator: makes samples.
      autoencoder: of the run.
      protocol: a name of `protocols`.
      num_samples: how many.
      features: NAME:FILE, see `load_features`.
      reference: an npz of statistics; by default all records of the run's data, decoded.
      balance: of classes; the protocol's by default.
      unfinished: makes what keeps the sums, from all that they depend on but the parameters.

    Raises:
      UserError: the protocol is unknown, or the weights, the statistics or the data are missing.
    """
    chosen = get_protocol(protocol)
    if num_samples < 2:
        raise UserError(f"num_samples={num_samples}: a covariance needs at least 2 samples")
    experiment = generator.experiment
    config = experiment.config
    balance = balance or chosen.balance
    loaded = load_features(chosen, features)
    shape = image_shape(autoencoder, experiment.latent_shape)
    real = find_reference(reference, config.data, autoencoder, loaded, shape, experiment.mesh)
    facts = {
        "protocol": protocol,
        "weights": loaded.digest,
        "num_samples": num_samples,
        "class_balance": balance,
        "seed": generator.seed,
        "guidance": str(generator.guidance),
        "guidance_interval": list(generator.guidance.interval),
        "vectors": real.vectors is not None,
    }
    labels = make_labels(
        balance,
        num_samples,
        num_classes=config.data.num_classes,
        seed=generator.seed,
        # A copy of them is made only where they are looked at.
        records=staging.local(config.data.path, config.data.stage) if balance == "data" else "",
    )
    return Evaluator(
        generator,
        loaded,
        real,
        image_shape=shape,
        labels=labels,
        batch_size=config.evaluation.batch_size,
        facts=facts,
        unfinished=unfinished(facts) if unfinished else None,
    )


def image_shape(autoencoder: Autoencoder, latent_shape: tuple[int, ...]) -> tuple[int, ...]:
    """[H, W, C] of a decoded sample."""
    latents = jax.ShapeDtypeStruct((1, *latent_shape), jnp.float32)
    images = jax.eval_shape(autoencoder.decode_with, dict(autoencoder.decoder_weights), latents)
    return tuple(images.shape[1:])


def find_reference(
    path: str,
    data: ConfigDict,
    autoencoder: Autoencoder,
    features: Features,
    image_shape: tuple[int, ...],
    mesh: jax.sharding.Mesh,
) -> Reference:
    """Statistics from a file; "" for those of a run's own records, decoded.

    Args:
      path: of the file.
      data: the run's `config.data`.
      autoencoder: decodes its records.
      features: what is measured.
      image_shape: [H, W, C] of a decoded record.
      mesh: where records are decoded and measured.

    Raises:
      UserError: see `load_reference`; or the protocol's statistics are always a file's.
    """
    if path:
        return open_reference(path, features, image_shape, mesh)
    if features.protocol.network in ("inception", "dinov2"):
        raise UserError(
            f"protocol {features.protocol.name} needs statistics of real images: --reference=FILE,"
            " from ADM, from the official code, or from python -m shortcut_tpu.reference_stats"
        )
    directory = staging.local(data.path, data.stage)
    # A network sees many more pixels than a small record has.
    plain = features.protocol.network == "pixels"
    sums = record_sums(
        directory,
        autoencoder,
        features,
        mesh,
        batch_size=_REFERENCE_BATCH if plain else _REFERENCE_BATCH // 8,
        vectors="precision" in features.protocol.distances,
    )
    return as_reference(sums, f"{sums.count} records of {directory}, decoded")


def open_reference(
    path: str, features: Features, image_shape: tuple[int, ...], mesh: jax.sharding.Mesh
) -> Reference:
    """Statistics from a file, with vectors of its images where it holds images.

    Raises:
      UserError: see `load_reference`.
    """
    reference = load_reference(path, features, features.sizes(image_shape)[POOL])
    if (
        reference.vectors is None
        and "precision" in features.protocol.distances
        and holds_images(path)
    ):
        sums = sample_sums(path, features, mesh, batch_size=_REFERENCE_BATCH // 4)
        reference = dataclasses.replace(reference, vectors=sums.kept_vectors())
    return reference


def table(
    scores: Mapping[str, Mapping[Any, float]], guidance: Guidance | None = None
) -> Sequence[str]:
    """Lines that show scores, by name, over the number of steps, and the guidance of each."""
    columns = list(next(iter(scores.values())))
    strengths = {c: guidance.at(c) if guidance and isinstance(c, int) else 1.0 for c in columns}
    if set(strengths.values()) != {1.0}:
        scores = {"guidance": strengths, **scores}
    width = max(9, *map(len, scores))
    widths = [max(9, len(str(column)) + 2) for column in columns]
    header = "".join(f"{c!s:>{w}}" for c, w in zip(columns, widths, strict=True))
    lines = [f"{'steps':>{width}} {header}"]
    for name, values in scores.items():
        cells = "".join(f"{values[c]:>{w}.4g}" for c, w in zip(columns, widths, strict=True))
        lines.append(f"{name:>{width}} {cells}")
    return lines

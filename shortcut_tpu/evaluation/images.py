"""Runs existing images through a protocol's network, on the whole mesh.

Usage:
  program = ImageProgram(features, mesh)
  sums = program.gather(batches, Sums.empty(features, image_shape, num_images))
"""

from collections.abc import Callable, Iterable, Iterator
import dataclasses
import functools
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from data_pipeline.autoencoders import Autoencoder
from data_pipeline.records import LatentReader
from shortcut_tpu.evaluation.features import POOL, SPATIAL, Features
from shortcut_tpu.evaluation.reference import Reference
from shortcut_tpu.evaluation.rows import ahead, submit
from shortcut_tpu.evaluation.sample_files import SampleReader
from shortcut_tpu.evaluation.sums import Sums
from shortcut_tpu.pod import partitioning
from shortcut_tpu.pod.distributed import from_first

# Of larger sets so many images' vectors are kept, as ADM's references have images.
VECTORS = 10_000


def bytes_to_unit(images: jax.Array) -> jax.Array:
    """Images as bytes to [-1, 1]; floats as they are."""
    return images / 127.5 - 1 if images.dtype == jnp.uint8 else images


class ImageProgram:
    """From arrays on every host to features, sharded by rows."""

    def __init__(
        self,
        features: Features,
        mesh: Mesh,
        autoencoder: Autoencoder | None = None,
    ):
        """Compiles nothing yet.

        Args:
          features: what is computed.
          mesh: over which rows are split.
          autoencoder: decodes the rows inside the program; by default they are images, as bytes or
            in about [-1, 1].
        """
        self._mesh = mesh
        decoder = autoencoder.decoder_weights if autoencoder else {}
        weights = partitioning.replicate(mesh, (dict(decoder), dict(features.weights)))

        def compute(weights: Any, rows: jax.Array) -> dict[str, jax.Array]:
            decoder, networks = weights
            images = autoencoder.decode_with(decoder, rows) if autoencoder else bytes_to_unit(rows)
            return features.compute(networks, jnp.asarray(images))

        program = jax.jit(compute, out_shardings=partitioning.rows(mesh))
        self._program = functools.partial(program, weights)

    def gather(
        self,
        batches: Iterable[np.ndarray],
        sums: Sums,
        progress: Callable[[int], None] = lambda more: None,
        keep: Callable[[Sums], None] = lambda sums: None,
    ) -> Sums:
        """The sums with all batches added.

        Args:
          batches: rows [n, ...], all of one size but the last.
          sums: what there is already.
          progress: called with how many more rows are done.
          keep: called with the sums after each batch.
        """
        for count, outputs in ahead_of(self._start(batches)):
            sums = sums.add({name: array[:count] for name, array in outputs.items()})
            progress(count)
            keep(sums)
        return sums

    def _start(self, batches: Iterable[np.ndarray]) -> Iterator[Any]:
        size = 0
        for batch in filter(len, batches):
            size = max(size, len(batch))
            # A short last batch is filled up, so that it needs no program of its own.
            rows = np.pad(batch, ((0, size - len(batch)), *((0, 0),) * (batch.ndim - 1)), "edge")
            started = submit(self._mesh, self._program, rows)
            yield dataclasses.replace(started, count=len(batch))


def ahead_of(started: Iterable[Any]) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Counts and outputs of pending batches, one ahead."""
    for outputs in ahead(started):
        yield len(outputs[POOL]), outputs


def one_mesh() -> Mesh:
    """All devices as a mesh of rows, for work that has no model."""
    return partitioning.make_mesh((jax.device_count(), 1, 1, 1))


def every(count: int) -> int:
    """Of how many images one's vector is kept, so that at most VECTORS are."""
    return max(math.ceil(count / VECTORS), 1)


def as_reference(sums: Sums, source: str) -> Reference:
    """The sums of real images as what samples are compared with."""
    return Reference(
        pool=sums.gaussians[POOL],
        spatial=sums.gaussians.get(SPATIAL),
        vectors=sums.kept_vectors(),
        source=source,
        images=sums.count,
    )


def record_sums(
    directory: str | os.PathLike[str],
    autoencoder: Autoencoder,
    features: Features,
    mesh: Mesh,
    *,
    batch_size: int,
    limit: int | None = None,
    part: tuple[int, int] = (0, 1),
    vectors: bool = True,
    progress: Callable[[int], None] = lambda more: None,
    resumed: Sums | None = None,
    keep: Callable[[Sums], None] = lambda sums: None,
) -> Sums:
    """Sums of the records of a folder, decoded, each once and not mirrored.

    Args:
      directory: of latent records.
      autoencoder: that made them.
      features: what is computed.
      mesh: on which.
      batch_size: records at a time.
      limit: of more records than these, so many, evenly spaced.
      part: of these every n-th from the k-th on, as (k, n).
      vectors: whether to keep vectors for precision and recall.
      progress: called with how many more records are done.
      resumed: what an earlier process had, which it told `keep` after every batch; on the first
        host, the only one whose sums then count.
      keep: see `resumed`.
    """
    reader = LatentReader(directory)
    count = len(reader) if limit is None else min(limit, len(reader))
    first, stride = part
    wanted = (np.arange(count) * len(reader) // count)[first::stride]
    count = len(wanted)
    shape = tuple(reader.manifest.autoencoder["image_shape"])
    program = ImageProgram(features, mesh, autoencoder)
    sums = resumed or Sums.empty(features, shape, count, every=every(count) if vectors else 0)
    begin = from_first(sums.count)
    progress(begin)
    batches = (
        reader.read(wanted[start : start + batch_size])["mean"].astype(np.float32)
        for start in range(begin, count, batch_size)
    )
    return program.gather(batches, sums, progress, keep)


def sample_sums(
    path: str | os.PathLike[str],
    features: Features,
    mesh: Mesh,
    *,
    batch_size: int,
    all_vectors: bool = True,
    progress: Callable[[int], None] = lambda more: None,
) -> Sums:
    """Sums of the images of an npz file, see `sample_files`.

    Args:
      path: of the file.
      features: what is computed.
      mesh: on which.
      batch_size: images at a time.
      all_vectors: keep every vector, not only VECTORS of them.
      progress: called with how many more images are done.
    """
    with SampleReader(path) as samples:
        kept = 1 if all_vectors else every(len(samples))
        sums = Sums.empty(features, samples.shape[1:], len(samples), every=kept)
        return ImageProgram(features, mesh).gather(samples.batches(batch_size), sums, progress)

"""Folders of sampled images, a PNG file each, as other people's FID tools read them.

Sample i is `000000i.png`, a function of (seed, i) at any batch size, mesh and number of hosts.
Every host writes its share of the files, so the folder must be one that all share. Stopped and
called again with the same facts it makes only what is missing; a larger number adds to a folder.

Usage:
  folder = SampleFolder(epath.Path("samples"), facts)
  folder.write(generator, params, labels, num_steps=1, batch_size=256)
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
import dataclasses
import json
from typing import Any

from etils import epath
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np

from data_pipeline.atomic_files import failures, write_bytes, write_json
from data_pipeline.errors import UserError
from shortcut_tpu.evaluation.generator import Generator
from shortcut_tpu.evaluation.protocols import to_bytes
from shortcut_tpu.evaluation.rows import ahead
from shortcut_tpu.observability.sheets import to_png
from shortcut_tpu.pod import distributed, partitioning

ABOUT = "samples.json"
_THREADS = 8


@dataclasses.dataclass(frozen=True)
class Bytes:
    """A consumer that gives images as bytes [n, H, W, C], rounded as they are for a distance."""

    @property
    def weights(self) -> Mapping[str, Any]:
        return {}

    def compute(self, weights: Any, images: jax.Array) -> jax.Array:
        return to_bytes(images).astype(jnp.uint8)


class SampleFolder:
    """A folder of samples that were made alike."""

    def __init__(self, path: epath.Path, facts: Mapping[str, Any]):
        """Opens a folder or makes it.

        Args:
          path: on a disk that all hosts share, or in a bucket.
          facts: all that a sample depends on but its index; kept in `samples.json`.

        Raises:
          UserError: it holds samples of other facts, or it cannot be written.
        """
        self._path = path
        self._facts = json.loads(json.dumps(dict(facts)))
        distributed.first_does(self._open)

    def _open(self) -> None:
        about = self._path / ABOUT
        try:
            before = json.loads(about.read_text()) if about.exists() else None
        except failures(ValueError) as error:
            raise UserError(f"{about}: cannot be read: {error}") from None
        if before is None:
            try:
                self._path.mkdir(parents=True, exist_ok=True)
            except failures() as error:
                raise UserError(f"{self._path}: cannot be made: {error}") from None
            if any(path.suffix == ".png" for path in self._path.iterdir()):
                raise UserError(f"{self._path}: holds PNG files, and no {ABOUT} to tell what of")
            write_json(about, self._facts)
        elif before != self._facts:
            keys = sorted({*before, *self._facts})
            differing = [key for key in keys if before.get(key) != self._facts.get(key)]
            raise UserError(
                f"{self._path}: holds samples made otherwise ({', '.join(differing)}); give "
                "another --output"
            )

    def write(
        self,
        generator: Generator,
        params: Any,
        labels: np.ndarray,
        *,
        num_steps: int,
        batch_size: int,
        progress: Callable[[int], None] = lambda more: None,
    ) -> None:
        """Writes the samples that are not there; every host must call it.

        Args:
          generator: makes them.
          params: usually the evaluation average.
          labels: [N] of samples 0 .. N - 1.
          num_steps: sampling steps.
          batch_size: samples at a time, over all devices.
          progress: called with how many more samples are there.

        Raises:
          UserError: a file cannot be written, or they are neither grey nor in colour.
        """
        shards = partitioning.row_shards(generator.experiment.mesh)
        size = max(min(batch_size, len(labels)) // shards, 1) * shards
        missing = self._missing(len(labels))
        progress(len(labels) - len(missing))
        batches = [missing[start : start + size] for start in range(0, len(missing), size)]

        def started() -> Iterator[Any]:
            for batch in batches:
                # A short last batch is filled up, so that it needs no program of its own.
                rows = np.resize(batch, size)
                pending = generator.submit(params, rows, labels[rows], num_steps, Bytes())
                yield dataclasses.replace(pending, count=len(batch))

        with ThreadPoolExecutor(_THREADS) as pool:
            for batch, images in zip(batches, ahead(started()), strict=True):
                host, hosts = jax.process_index(), jax.process_count()
                list(pool.map(self._put, batch[host::hosts], images[host::hosts]))
                progress(len(batch))

    def _missing(self, count: int) -> np.ndarray:
        """Indices of the samples that have no file, as the first host sees it."""
        there = np.zeros(count, bool)
        if jax.process_index() == 0:
            names = {path.name for path in self._path.iterdir()}
            there[:] = [_name(index) in names for index in range(count)]
        return np.flatnonzero(~np.asarray(multihost_utils.broadcast_one_to_all(there)))

    def _put(self, index: int, image: np.ndarray) -> None:
        if image.shape[-1] not in (1, 3):
            raise UserError(f"samples of {image.shape[-1]} channels are no pictures")
        path = self._path / _name(index)
        try:
            write_bytes(path, to_png(image))
        except failures() as error:
            raise UserError(f"{path}: cannot be written: {error}") from None


def _name(index: int) -> str:
    return f"{index:07d}.png"

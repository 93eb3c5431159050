"""Sheets of samples at several numbers of sampling steps, with real images beside them.

Usage:
  sheets = SampleSheets(generator, step_counts=(1, 4, 128))
  pages = sheets.pages(params)                # pictures by their tags in TensorBoard
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import numpy as np

from data_pipeline import staging
from shortcut_tpu.cli.labels import label_names
from shortcut_tpu.evaluation.generator import Generator, unit_to_uint8
from shortcut_tpu.evaluation.real_images import real_latents
from shortcut_tpu.observability import sheets
from shortcut_tpu.observability.charts import in_steps

SAME_NOISES = "samples/same_noises"

_SAMPLES, _ROWS, _FEWEST_ROWS, _REAL = 40, 10, 4, 4


def sheet_labels(num_classes: int) -> tuple[np.ndarray, int]:
    """Labels [N] of a sheet's samples, row by row, and how many stand in a row.

    A label a row, of many classes the first ten; of very few each has several rows.
    """
    labels = np.repeat(np.arange(min(num_classes, _ROWS)), max(_FEWEST_ROWS // num_classes, 1))
    columns = max(_SAMPLES // len(labels), 1)
    return np.repeat(labels, columns).astype(np.int32), columns


class SampleSheets:
    """Draws a run's samples, by the programs that score them: others would be compiled anew."""

    def __init__(self, generator: Generator, step_counts: Sequence[int]):
        """Prepares sheets; nothing is compiled or read before the first.

        Args:
          generator: of the run's samples.
          step_counts: numbers of sampling steps, a sheet each.
        """
        self._generator = generator
        self._step_counts = step_counts
        self._config = generator.experiment.config
        evaluation = self._config.evaluation
        self._batch_size = generator.rows_at_once(evaluation.batch_size, evaluation.num_samples)

    def pages(
        self, params: Any, progress: Callable[[int], None] = lambda more: None
    ) -> dict[str, np.ndarray]:
        """Pictures [H, W, 3] uint8 by their tags.

        `samples/N_steps` has a row for each label, `samples/same_noises` a row for each step count.

        Args:
          params: of the network.
          progress: called with how many more steps of samples are done.
        """
        labels, columns = sheet_labels(self._config.data.num_classes)
        first = labels[::columns]
        names = label_names(first, self._config.data)
        real = self._real(tuple(first.tolist()))
        pages, same, row_names = {}, [], []
        for n in self._step_counts:
            found = self.samples(params, labels, n)
            progress(n * len(labels))
            rows = found.reshape(len(first), columns, *found.shape[1:])
            same.append(rows[:, 0])
            row_names.append(in_steps(n))
            blocks = {in_steps(n): columns}
            if real is not None:
                rows = np.concatenate([rows, real], axis=1)
                blocks["real images"] = _REAL
            pages[f"samples/{n}_steps"] = sheets.sheet(
                rows.reshape(-1, *found.shape[1:]),
                rows.shape[1],
                row_names=names,
                blocks=blocks,
            )
        if real is not None:
            same.append(real[:, 0])
            row_names.append("real images")
        pages[SAME_NOISES] = sheets.sheet(
            np.concatenate(same), len(first), row_names=row_names, column_names=names
        )
        return pages

    def samples(self, params: Any, labels: np.ndarray, num_steps: int) -> np.ndarray:
        """Samples 0 .. n - 1 [n, H, W, C] uint8 of labels [n], on every host."""
        return unit_to_uint8(self._generator.images(params, labels, num_steps, self._batch_size))

    @functools.lru_cache(maxsize=1)  # noqa: B019  (it lives as long as the run)
    def _real(self, labels: tuple[int, ...]) -> np.ndarray | None:
        """Real images of each label [len(labels), _REAL, H, W, C] uint8, where records are here."""
        data = self._config.data
        latents = real_latents(staging.local(data.path, data.stage), data, labels, _REAL)
        if latents is None:
            return None
        images = unit_to_uint8(self._generator.decoded(latents, self._batch_size))
        return images.reshape(len(labels), _REAL, *images.shape[1:])

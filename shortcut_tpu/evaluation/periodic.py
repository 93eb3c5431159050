"""Evaluates a run while it trains."""

from collections.abc import Callable, Mapping
import functools
import json
from typing import Any

from etils import epath
import jax
from jax.experimental import multihost_utils
import numpy as np

from data_pipeline import staging
from data_pipeline.atomic_files import write_text
from data_pipeline.autoencoders import Autoencoder
from data_pipeline.progress import Bar, unseen
from shortcut_tpu.cli.console import say
from shortcut_tpu.cli.labels import label_names
from shortcut_tpu.evaluation.evaluator import Evaluator, make_evaluator, table
from shortcut_tpu.evaluation.generator import Generator, make_generator, unit_to_uint8
from shortcut_tpu.evaluation.real_images import real_latents
from shortcut_tpu.observability import sheets
from shortcut_tpu.observability.charts import in_steps
from shortcut_tpu.observability.writers import Writer
from shortcut_tpu.pod import partitioning
from shortcut_tpu.training.experiment import Experiment
from shortcut_tpu.training.flops import count_flops

_SAMPLES, _ROWS, _FEWEST_ROWS, _REAL = 40, 10, 4, 4


def sheet_labels(num_classes: int) -> tuple[np.ndarray, int]:
    """Labels [N] of a sheet's samples, row by row, and how many stand in a row.

    A label a row, of many classes the first ten; of very few each has several rows.
    """
    labels = np.repeat(np.arange(min(num_classes, _ROWS)), max(_FEWEST_ROWS // num_classes, 1))
    columns = max(_SAMPLES // len(labels), 1)
    return np.repeat(labels, columns).astype(np.int32), columns


class PeriodicEvaluation:
    """Distances, their figure, and sheets of the same noises at each step count."""

    def __init__(
        self,
        experiment: Experiment,
        autoencoder: Autoencoder,
        writer: Writer,
        folder: epath.Path,
        bar: Bar = unseen,
        progress: Callable[[int], None] = lambda more: None,
    ):
        """Prepares evaluations; nothing is compiled or read before the first.

        Args:
          experiment: the parts of the run.
          autoencoder: decodes the samples.
          writer: gets scalars and images.
          folder: gets STEP.json, the distances, once an evaluation is complete.
          bar: shows how far an evaluation is, see `data_pipeline.progress`.
          progress: called with how many more steps of samples are done.
        """
        self._experiment = experiment
        self._autoencoder = autoencoder
        self._writer = writer
        self._folder = folder
        self._bar = bar
        self._progress = progress

    @functools.cached_property
    def _generator(self) -> Generator:
        return make_generator(self._experiment, self._autoencoder)

    @functools.cached_property
    def _evaluator(self) -> Evaluator:
        evaluation = self._experiment.config.evaluation
        return make_evaluator(
            self._generator,
            self._autoencoder,
            protocol=evaluation.protocol,
            num_samples=evaluation.num_samples,
            features=evaluation.features,
            reference=evaluation.reference,
            balance=evaluation.class_balance,
        )

    @property
    def step_counts(self) -> tuple[int, ...]:
        """Numbers of sampling steps that are scored."""
        asked = self._experiment.config.evaluation.steps
        return tuple(self._experiment.objective.step_counts(asked))

    @property
    def flops(self) -> int:
        """Operations in the products of an evaluation's samples, their images apart; 0 if none."""
        evaluation = self._experiment.config.evaluation
        if not evaluation.every_steps:
            return 0
        rows = partitioning.row_shards(self._experiment.mesh)
        ints = np.zeros(rows, np.uint32), np.zeros(rows, np.int32)
        params = self._experiment.abstract_state.params
        one_step = count_flops(self._generator.program(1), params, *ints)
        return one_step * evaluation.num_samples * sum(self.step_counts) // rows

    def first_batch(self, params: Any, num_steps: int) -> None:
        """Scores one batch at a step count, and forgets it."""
        self._evaluator.first_batch(params, num_steps, self._progress)

    def __call__(self, step: int, params: Any) -> dict[int, float]:
        """Evaluates, writes and prints; returns the distances by number of sampling steps."""
        config = self._experiment.config
        metric = self._evaluator.metric
        labels, columns = sheet_labels(config.data.num_classes)
        step_counts = self.step_counts
        scores: dict[str, dict[int, float]] = {}
        samples: dict[int, np.ndarray] = {}
        with self._bar("sampling steps", self._evaluator.num_samples * sum(step_counts), 0) as more:

            def progress(done: int) -> None:
                more(done)
                self._progress(done)

            for n in step_counts:
                for name, score in self._evaluator.scores(params, n, progress).items():
                    scores.setdefault(name, {})[n] = score
                samples[n] = unit_to_uint8(self._evaluator.images(params, labels, n))
        images = self._sheets(samples, labels, columns, scores[metric])
        for name, values in scores.items():
            self._writer.write_scalars(step, {f"eval/{name}@{n}": s for n, s in values.items()})
        self._writer.write_images(step, images)
        self._writer.flush()
        if jax.process_index() == 0:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_text(self._folder / f"{step}.json", json.dumps(scores) + "\n")
        say(
            f"evaluated at step {step}, {self._evaluator.num_samples} samples",
            *table(scores, self._evaluator.guidance),
        )
        return scores[metric]

    def _sheets(
        self,
        samples: Mapping[int, np.ndarray],
        labels: np.ndarray,
        columns: int,
        distances: Mapping[int, float],
    ) -> dict[str, np.ndarray]:
        """The pictures of an evaluation by their tags.

        Args:
          samples: by number of sampling steps, of labels [N].
          labels: a sheet's, row by row.
          columns: samples in a row.
          distances: by number of sampling steps.
        """
        first = labels[::columns]
        names = label_names(first, self._experiment.config.data)
        real = self._real(tuple(first.tolist()))
        images = {}
        for n, found in samples.items():
            rows = found.reshape(len(first), columns, *found.shape[1:])
            blocks = {in_steps(n): columns}
            if real is not None:
                rows = np.concatenate([rows, real], axis=1)
                blocks["real images"] = _REAL
            images[f"samples/{n}_steps"] = sheets.sheet(
                rows.reshape(-1, *found.shape[1:]),
                rows.shape[1],
                row_names=names,
                blocks=blocks,
            )
        same = [found[::columns] for found in samples.values()]
        row_names = [in_steps(n) for n in samples]
        if real is not None:
            same.append(real[:, 0])
            row_names.append("real images")
        figure = sheets.distance_figure(self._evaluator.metric, distances)
        page = sheets.sheet(
            np.concatenate(same), len(first), row_names=row_names, column_names=names
        )
        images["samples/same_noises"] = sheets.beside(page, figure)
        images[f"eval/{self._evaluator.metric}_over_steps"] = figure
        return {tag: image[None] for tag, image in images.items()}

    @functools.lru_cache(maxsize=1)  # noqa: B019  (it lives as long as the run)
    def _real(self, labels: tuple[int, ...]) -> np.ndarray | None:
        """Real images of each label [len(labels), _REAL, H, W, C] uint8, where records are here."""
        data = self._experiment.config.data
        latents = real_latents(staging.local(data.path, data.stage), data, labels, _REAL)
        if latents is None:
            return None
        images = unit_to_uint8(self._evaluator.decoded(latents))
        return images.reshape(len(labels), _REAL, *images.shape[1:])

    def unless_done(self, step: int, params: Any) -> None:
        """Evaluates unless that was completed before."""
        done = np.array((self._folder / f"{step}.json").exists())
        if not multihost_utils.broadcast_one_to_all(done):
            self(step, params)

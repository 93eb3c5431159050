"""Evaluates a run while it trains."""

from collections.abc import Callable, Mapping
import functools
import json
from typing import Any

from etils import epath
import jax
from jax.experimental import multihost_utils
import numpy as np

from data_pipeline.atomic_files import write_bytes, write_text
from data_pipeline.autoencoders import Autoencoder
from data_pipeline.progress import Bar, unseen
from shortcut_tpu.cli.console import say
from shortcut_tpu.evaluation.evaluator import Evaluator, make_evaluator, table
from shortcut_tpu.evaluation.generator import Generator, make_generator
from shortcut_tpu.evaluation.sample_sheets import SAME_NOISES, SampleSheets
from shortcut_tpu.observability import sheets
from shortcut_tpu.observability.writers import Writer
from shortcut_tpu.pod import partitioning
from shortcut_tpu.training.experiment import Experiment
from shortcut_tpu.training.flops import count_flops


class PeriodicEvaluation:
    """Distances and their figure, and sheets of samples at each step count."""

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
          folder: gets STEP.json, the distances, once an evaluation is complete, and STEP.png.
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

    @functools.cached_property
    def _sheets(self) -> SampleSheets:
        return SampleSheets(self._generator, self.step_counts)

    @property
    def step_counts(self) -> tuple[int, ...]:
        """Numbers of sampling steps that are scored and shown."""
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
        """Does at a step count what the run will, with one batch, and forgets it."""
        evaluation = self._experiment.config.evaluation
        if evaluation.every_steps:
            self._evaluator.first_batch(params, num_steps, self._progress)
        elif evaluation.sheet_every_steps:
            self._sheets.samples(params, np.zeros(1, np.int32), num_steps)

    def __call__(self, step: int, params: Any) -> dict[int, float]:
        """Evaluates, writes and prints; returns the distances by number of sampling steps."""
        metric = self._evaluator.metric
        step_counts = self.step_counts
        scores: dict[str, dict[int, float]] = {}
        with self._bar("sampling steps", self._evaluator.num_samples * sum(step_counts), 0) as more:

            def progress(done: int) -> None:
                more(done)
                self._progress(done)

            for n in step_counts:
                for name, score in self._evaluator.scores(params, n, progress).items():
                    scores.setdefault(name, {})[n] = score
        for name, values in scores.items():
            self._writer.write_scalars(step, {f"eval/{name}@{n}": s for n, s in values.items()})
        figure = sheets.distance_figure(metric, scores[metric])
        self._write(step, params, figure, {f"eval/{metric}_over_steps": figure})
        if jax.process_index() == 0:
            write_text(self._folder / f"{step}.json", json.dumps(scores) + "\n")
        say(
            f"evaluated at step {step}, {self._evaluator.num_samples} samples",
            *table(scores, self._evaluator.guidance),
        )
        return scores[metric]

    def draw(self, step: int, params: Any) -> None:
        """Writes and names the sheets alone."""
        picture = self._write(step, params, None, {})
        say(f"samples at step {step}: {picture}")

    def _write(
        self,
        step: int,
        params: Any,
        figure: np.ndarray | None,
        more: Mapping[str, np.ndarray],
    ) -> epath.Path:
        """Sheets, a figure beside that of the same noises, and more pictures; names its file."""
        pages = self._sheets.pages(params, self._progress)
        if figure is not None:
            pages[SAME_NOISES] = sheets.beside(pages[SAME_NOISES], figure)
        images = {tag: page[None] for tag, page in (pages | dict(more)).items()}
        self._writer.write_images(step, images)
        self._writer.flush()
        picture = self._folder / f"{step}.png"
        if jax.process_index() == 0:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_bytes(picture, sheets.to_png(pages[SAME_NOISES]))
        return picture

    def unless_done(self, step: int, params: Any) -> None:
        """Evaluates unless that was completed before."""
        done = np.array((self._folder / f"{step}.json").exists())
        if not multihost_utils.broadcast_one_to_all(done):
            self(step, params)

"""Reports a run at each log interval: curves, and a line on the console.

Usage, on every process:
  reporter = Reporter(experiment, writer, Speed(...), goodput, clock)
  reporter(step, state, metrics, {"train/corrupt_records": 0})
"""

from collections.abc import Mapping
import dataclasses

import jax

from shortcut_tpu.cli.console import progress_line, say
from shortcut_tpu.objectives import Metrics
from shortcut_tpu.observability.clock import Clock
from shortcut_tpu.observability.goodput import Goodput
from shortcut_tpu.observability.speed import Speed
from shortcut_tpu.observability.writers import Writer, concerned
from shortcut_tpu.training.experiment import Experiment
from shortcut_tpu.training.train_state import TrainState


@dataclasses.dataclass(frozen=True)
class Reporter:
    """Reports on the steps since the last report; every process must call it at the same steps."""

    experiment: Experiment
    writer: Writer
    speed: Speed
    goodput: Goodput
    clock: Clock

    def __call__(
        self, step: int, state: TrainState, metrics: Metrics, counts: Mapping[str, int]
    ) -> None:
        """Writes and prints.

        Args:
          step: the last that is done.
          state: after it.
          metrics: of it, by row.
          counts: what the loop has counted, under the names of their curves.
        """
        experiment = self.experiment
        found = experiment.summarize(metrics) | experiment.summarize_state(state)
        scalars = {f"train/{k}": v for k, v in concerned(jax.device_get(found)).items()}
        scalars |= self.speed.interval(step)
        self.goodput.record(step, self.clock.read().wall)
        scalars |= {"perf/goodput": self.goodput.share()} | dict(counts)
        self.writer.write_scalars(step, scalars)
        num_steps = experiment.config.train.num_steps
        say(progress_line(step, num_steps, scalars, scalars["perf/step_seconds"]))

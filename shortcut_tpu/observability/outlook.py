"""Says after the first steps how fast a run is and when it will be done.

Usage, on every process:
  outlook = Outlook(clock, first_step, config, step_flops, evaluation_flops)
  for step in ...:
    ...
    outlook.reached(step, metrics)
"""

import datetime
from typing import Any

import jax
from ml_collections import ConfigDict

from shortcut_tpu.cli.console import duration, say
from shortcut_tpu.observability.clock import INPUT, STEP, Clock

# Steps of a start: the first compiles, the second may still wait for what that left behind.
_FROM, _TO = 2, 7


class Outlook:
    """Measures a few steps of a start, and says once what follows from them."""

    def __init__(
        self,
        clock: Clock,
        first_step: int,
        config: ConfigDict,
        step_flops: int,
        evaluation_flops: int,
    ):
        """Measures nothing yet.

        Args:
          clock: of this process.
          first_step: the last step that is done.
          config: of the run.
          step_flops: operations in a step's products.
          evaluation_flops: in those of an evaluation's samples.
        """
        self._clock = clock
        self._first_step = first_step
        self._config = config
        self._steps_per_evaluation = evaluation_flops / step_flops
        self._before = 0.0

    def reached(self, step: int, metrics: Any) -> None:
        """Waits for the devices at the two steps between which it measures, and then speaks.

        Args:
          step: the last that was started.
          metrics: of it.
        """
        made = step - self._first_step
        if made not in (_FROM, _TO):
            return
        jax.block_until_ready(metrics)
        wall = self._clock.read().wall
        spent = wall[STEP] + wall[INPUT]
        if made == _FROM:
            self._before = spent
            return
        say(self.line(step, (spent - self._before) / (_TO - _FROM), datetime.datetime.now()))

    def line(self, step: int, seconds: float, now: datetime.datetime) -> str:
        """What is known once `step` is done, a step taking so many seconds."""
        num_steps, every = self._config.train.num_steps, self._config.evaluation.every_steps
        steps = (num_steps - step) * seconds
        evaluations = 0.0
        if every:
            count = -(-num_steps // every) - step // every
            evaluations = count * self._steps_per_evaluation * seconds
        images = self._config.batch_size / seconds
        end = now + datetime.timedelta(seconds=steps + evaluations)
        day = "" if end.date() == now.date() else f"{end:%Y-%m-%d} "
        parts = f"steps {duration(steps)}"
        parts += f", evaluations about {duration(evaluations)}" if every else ""
        return f"{images:,.0f} images/s: done at about {day}{end:%H:%M} ({parts})"

"""On SIGTERM to any host, ends the run on all hosts at the same step.

Usage:
  with Preemption() as preemption:
    for step in ...:
      state, metrics = train_step(state, batch)
      if preemption.reached(step):    # on every process at the same step
        save and return
"""

import signal

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Listens for SIGTERM from the moment it is made until it is left."""

    def __init__(self) -> None:
        self._asked = False
        self._alone = jax.process_count() == 1
        if self._alone:
            self._before = signal.signal(signal.SIGTERM, self._ask)
        # With several processes jax.distributed listens, and settles on a step that none has
        # passed.

    def _ask(self, *_: object) -> None:
        self._asked = True

    def reached(self, step: int) -> bool:
        """Whether to save and end after this step; every process must ask at every step."""
        if self._alone:
            return self._asked
        return multihost_utils.reached_preemption_sync_point(step)

    def __enter__(self) -> "Preemption":
        return self

    def __exit__(self, *_: object) -> None:
        if self._alone:
            signal.signal(signal.SIGTERM, self._before)

"""Attributes every moment of a process to one kind of work.

Usage:
  clock = Clock()                       # from here on all is START
  with clock.spending(RESTORE):
    ...
  for step in ...:
    with clock.spending(INPUT):
      batch = next(batches)
    run(batch)
    clock.stepping()                    # the first step has compiled: from here on all is STEP
  clock.read().wall[STEP]
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import time

START = "start and compile"
RESTORE = "restore"
STEP = "steps"
INPUT = "input wait"
CHECKPOINT = "checkpoint block"
EVALUATION = "evaluation"


@dataclasses.dataclass(frozen=True)
class Reading:
    """Seconds by kind, since the clock was made or between two readings.

    Attributes:
      wall: that have passed.
      cpu: that the thread which holds the clock was on a processor; it is not while it waits, for
        devices or for anything else.
    """

    wall: dict[str, float]
    cpu: dict[str, float]

    def since(self, before: "Reading") -> "Reading":
        """What has come to it since an earlier reading."""
        return Reading(_less(self.wall, before.wall), _less(self.cpu, before.cpu))


def _less(now: dict[str, float], before: dict[str, float]) -> dict[str, float]:
    return {kind: seconds - before[kind] for kind, seconds in now.items()}


class Clock:
    """Tells what the loop's thread spends its time on; to be used by that thread alone."""

    def __init__(
        self,
        wall: Callable[[], float] = time.monotonic,
        cpu: Callable[[], float] = time.thread_time,
    ):
        """Starts, with START."""
        self._sources = (wall, cpu)
        self._kind = START
        self._since = (wall(), cpu())
        kinds = (START, RESTORE, STEP, INPUT, CHECKPOINT, EVALUATION)
        self._wall, self._cpu = (dict.fromkeys(kinds, 0.0) for _ in range(2))

    @contextlib.contextmanager
    def spending(self, kind: str) -> Iterator[None]:
        """The block is of this kind; what comes after it is again of the kind before."""
        before = self._kind
        self._turn(kind)
        try:
            yield
        finally:
            self._turn(before)

    def stepping(self) -> None:
        """What no block claims goes into steps from here on, and no longer into the start."""
        if self._kind == START:
            self._turn(STEP)

    def read(self) -> Reading:
        """All seconds so far, with a zero where a kind had none."""
        self._turn(self._kind)
        return Reading(dict(self._wall), dict(self._cpu))

    def _turn(self, kind: str) -> None:
        wall, cpu = (source() for source in self._sources)
        self._wall[self._kind] += wall - self._since[0]
        self._cpu[self._kind] += cpu - self._since[1]
        self._since = (wall, cpu)
        self._kind = kind

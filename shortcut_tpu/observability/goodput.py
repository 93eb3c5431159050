"""Goodput: the share of a run's whole time that went into steps which were kept.

`WORKDIR/goodput.jsonl` holds a line for each start, of the first host: when it began, from which
step, and its seconds by kind so far. Steps that a later start did not go on from are lost, and so
is their share of that start's time.

Usage:
  goodput = Goodput(workdir, first_step)
  goodput.record(step, clock.read().wall)     # at every log interval; returns at once
  goodput.share()                             # 0.91
  goodput.summary()                           # "goodput 91 %: start and compile 4 %, ..."
  goodput.close()
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
import dataclasses
import json
import sys
import time

from etils import epath
import jax

from data_pipeline.atomic_files import failures, write_text
from shortcut_tpu.observability.clock import STEP

FILE = "goodput.jsonl"
LOST = "lost steps"
BETWEEN = "between starts"


@dataclasses.dataclass(frozen=True)
class Start:
    """A start of a run, as far as it is known.

    Attributes:
      began, until: seconds since 1970; what is after `until`, its last record, is not known.
      first_step: from which it went on.
      step: how far it came.
      seconds: by kind.
    """

    began: float
    until: float
    first_step: int
    step: int
    seconds: Mapping[str, float]


def by_kind(starts: Sequence[Start]) -> dict[str, float]:
    """Seconds of a run by kind, the most first: those of all its starts and those between them.

    Steps of a start are kept up to where each later one began; all take the same time. The time
    between a start's last record and the next start is BETWEEN.
    """
    total = dict.fromkeys((STEP, LOST, BETWEEN), 0.0)
    for index, start in enumerate(starts):
        later = starts[index + 1 :]
        kept_to = min([start.step, *(each.first_step for each in later)])
        made = start.step - start.first_step
        kept = max(kept_to - start.first_step, 0) / made if made else 1.0
        for kind, seconds in start.seconds.items():
            total[kind] = total.get(kind, 0.0) + seconds
        lost = (1 - kept) * start.seconds.get(STEP, 0.0)
        total[STEP] -= lost
        total[LOST] += lost
        if later:
            total[BETWEEN] += max(later[0].began - start.until, 0.0)
    return dict(sorted(total.items(), key=lambda item: -item[1]))


class Goodput:
    """The record of a run's starts; on hosts but the first only of this start, and unwritten."""

    def __init__(self, workdir: epath.Path, first_step: int):
        """Reads what earlier starts left; writes nothing yet."""
        self._path = workdir / FILE
        self._writes = jax.process_index() == 0
        self._before = recorded(workdir) if self._writes else []
        now = time.time()
        self._now = Start(now, now, first_step, first_step, {})
        self._writer = ThreadPoolExecutor(1, "goodput")
        self._pending: Future[None] | None = None

    def record(self, step: int, seconds: Mapping[str, float]) -> None:
        """Notes how far this start has come, in the file as soon as it is written.

        Args:
          step: the last that is done.
          seconds: of this start by kind, all of them.
        """
        until = time.time()
        self._now = Start(until - sum(seconds.values()), until, self._now.first_step, step, seconds)
        # A bucket may be slow: what waits to be written is soon out of date.
        if self._writes and (self._pending is None or self._pending.done()):
            self._pending = self._writer.submit(self._write, [*self._before, self._now])

    def share(self) -> float:
        """Of all seconds since the first start, up to the last record, those of kept steps."""
        seconds = by_kind([*self._before, self._now])
        return seconds[STEP] / max(sum(seconds.values()), 1e-9)

    def summary(self) -> str:
        """One line: the share, and what the rest went into, the most first."""
        found = by_kind([*self._before, self._now])
        total = sum(found.values())
        losses = [
            f"{kind} {100 * seconds / total:.0f} %"
            for kind, seconds in found.items()
            if kind != STEP and seconds >= 0.005 * total
        ]
        return f"goodput {100 * self.share():.0f} %: {', '.join(losses) or 'nothing lost'}"

    def close(self) -> None:
        """Writes the last record."""
        self._writer.shutdown()
        if self._writes and self._pending is not None:
            self._write([*self._before, self._now])

    def _write(self, starts: Sequence[Start]) -> None:
        lines = "".join(json.dumps(dataclasses.asdict(start)) + "\n" for start in starts)
        try:
            # A bucket knows no appending.
            write_text(self._path, lines)
        # No figure is worth the run.
        except failures() as error:
            reason = str(error).partition("\n")[0]
            print(f"warning: {self._path}: not written: {reason}", file=sys.stderr, flush=True)


def recorded(workdir: epath.Path) -> list[Start]:
    """The starts of a run, oldest first; lines that cannot be read are left out."""
    path = workdir / FILE
    starts = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            start = Start(**json.loads(line))
            by_kind([start])
        except (TypeError, ValueError, AttributeError):
            continue
        starts.append(start)
    return starts

"""Collects what a report shows of a run.

Usage:
  run = read_summary("a", workdir)
  run.distances()["fd_pixel"][4]    # {1000: 0.21, 2000: 0.14} by training step, at 4 sampling steps
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import re
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from shortcut_tpu.cli import config as config_lib
from shortcut_tpu.observability import environment
from shortcut_tpu.observability.events import Record, read_events
from shortcut_tpu.runs import checksums

# What `evaluate --json` wrote, where the rehearsed pod keeps it.
SCORES = "distances.json"
# A file of that name need not be ours.
_NOT_OURS = (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration)
DISTANCE = re.compile(r"eval/(.+)@(\d+)")


@dataclasses.dataclass(frozen=True)
class Score:
    """A finished run's distances by number of sampling steps, as `evaluate` found them."""

    metric: str
    step: int
    num_samples: int | None
    distances: dict[int, float]


@dataclasses.dataclass(frozen=True)
class Summary:
    """A run, as a report shows it.

    Attributes:
      step: of the newest checkpoint, 0 if there is none.
      starts: environments of its starts, oldest first.
      score: of its checkpoint, where there is one.
    """

    name: str
    config: ConfigDict
    step: int
    record: Record
    starts: Sequence[Mapping[str, Any]] = ()
    score: Score | None = None

    def distances(self) -> dict[str, dict[int, dict[int, float]]]:
        """Distances while training, by metric, number of sampling steps and training step."""
        found: dict[str, dict[int, dict[int, float]]] = {}
        for tag, values in self.record.scalars.items():
            match = DISTANCE.fullmatch(tag)
            if match and values:
                found.setdefault(match[1], {})[int(match[2])] = values
        return {metric: dict(sorted(by_n.items())) for metric, by_n in found.items()}


def read_summary(name: str, workdir: epath.Path) -> Summary:
    """Reads what a run left in its workdir.

    Raises:
      UserError: it is no workdir, or nothing was logged.
    """
    return Summary(
        name=name,
        config=config_lib.restore(workdir),
        step=max(checksums.finished(workdir / "checkpoints"), default=0),
        record=read_events(workdir),
        starts=environment.recorded(workdir),
        score=_read_scores(workdir / SCORES),
    )


def read_score(workdir: epath.Path, step: int) -> Score | None:
    """The distances of a checkpoint, by `evaluate` or else by the evaluation while it trained."""
    score = _read_scores(workdir / SCORES)
    if score is not None and score.step == step:
        return score
    try:
        content = json.loads((workdir / "evaluations" / f"{step}.json").read_text())
        metric, distances = next(iter(content.items()))
        return Score(metric, step, None, {int(n): float(value) for n, value in distances.items()})
    except _NOT_OURS:
        return None


def _read_scores(path: epath.Path) -> Score | None:
    try:
        content = json.loads(path.read_text())
        return Score(
            metric=content["metric"],
            step=content["step"],
            num_samples=content["num_samples"],
            distances={int(n): float(value) for n, value in content["distances"].items()},
        )
    except _NOT_OURS:
        return None

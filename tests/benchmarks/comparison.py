"""Two things measured in turns, their ratio, and the bar that it must clear.

Usage:
  ours, theirs = in_turns(lambda: seconds(f), lambda: seconds(g), rounds=5)
  found = Comparison("f over g", "s", ours, theirs, Bar(high=1.1))
  print(table([found]))
"""

from collections.abc import Callable, Sequence
import dataclasses
import math
from pathlib import Path
import statistics
import time
from typing import Any

import jax
from ml_collections import ConfigDict

Measure = Callable[[], float]


class Skipped(Exception):
    """A benchmark cannot run here; the message says what it lacks."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What every benchmark is told.

    Attributes:
      folder: an empty one, for its files.
      rounds: how often each of the two is measured.
      official: a clone of the official repository.
      autoencoder: NAME or NAME:WEIGHTS, for the benchmark of encode_latents.
      config: what the step and the official one train, in place of a small network.
    """

    folder: Path
    rounds: int = 5
    official: Path | None = None
    autoencoder: str | None = None
    config: ConfigDict | None = None


@dataclasses.dataclass(frozen=True)
class Bar:
    """Where a ratio must lie, ends included; without ends it is only shown."""

    low: float = -math.inf
    high: float = math.inf

    def holds(self, ratio: float) -> bool:
        return self.low <= ratio <= self.high

    def __str__(self) -> str:
        low, high = math.isfinite(self.low), math.isfinite(self.high)
        if low and high:
            return f"{self.low:.4g} to {self.high:.4g}"
        return f"<= {self.high:.4g}" if high else f">= {self.low:.4g}" if low else "-"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Figures of one thing and of another, round by round.

    Attributes:
      name: "this over that".
      unit: of the figures.
      ours: figures of the first, a round each.
      other: of the second, in the same rounds.
    """

    name: str
    unit: str
    ours: Sequence[float]
    other: Sequence[float]
    bar: Bar = Bar()

    @property
    def ratios(self) -> list[float]:
        """By round, so that what else the machine does in it meets both alike."""
        return [a / b for a, b in zip(self.ours, self.other, strict=True)]

    @property
    def ratio(self) -> float:
        """The median over the rounds."""
        return statistics.median(self.ratios)

    @property
    def holds(self) -> bool:
        return self.bar.holds(self.ratio)

    def figures(self) -> dict[str, Any]:
        """All of it, for JSON."""
        ends = {"low": self.bar.low, "high": self.bar.high}
        return {
            "name": self.name,
            "unit": self.unit,
            "ours": list(self.ours),
            "other": list(self.other),
            "ratio": self.ratio,
            "lowest": min(self.ratios),
            "highest": max(self.ratios),
            "bar": {end: value for end, value in ends.items() if math.isfinite(value)},
            "holds": self.holds,
        }


def in_turns(ours: Measure, other: Measure, rounds: int) -> tuple[list[float], list[float]]:
    """Figures of both by round: A B, B A, A B, ..., so that a drift favours neither."""
    first, second = [], []
    for number in range(rounds):
        if number % 2 == 0:
            first.append(ours())
        second.append(other())
        if number % 2:
            first.append(ours())
    return first, second


def seconds(function: Callable[[], Any]) -> float:
    """How long a call takes until its arrays are there."""
    started = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - started


def table(comparisons: Sequence[Comparison]) -> str:
    """One line for each comparison, under a head."""
    width = max([len(found.name) for found in comparisons], default=0)
    head = (
        f"{'':{width}} {'first':>9} {'second':>9} {'':5} {'ratio':>7} {'lowest':>7} {'highest':>7}"
    )
    lines = [f"{head}  {'bar':14} holds"]
    for found in comparisons:
        ours, other = statistics.median(found.ours), statistics.median(found.other)
        verdict = "" if str(found.bar) == "-" else "yes" if found.holds else "NO"
        line = (
            f"{found.name:{width}} {ours:9.4g} {other:9.4g} {found.unit:5} {found.ratio:7.3f} "
            f"{min(found.ratios):7.3f} {max(found.ratios):7.3f}  {found.bar!s:14} {verdict}"
        )
        lines.append(line.rstrip())
    return "\n".join(lines)

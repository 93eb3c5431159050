"""The table of a comparison: a row for each method, a column for each number of steps.

Usage:
  rows = [Row("shortcut", [{1: 0.27, 4: 0.12}], cost=1.17, phases=1, learning_rate=6e-3)]
  print(*table("fd_pixel", [1, 4], rows), sep="\n")
"""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import numpy as np

from shortcut_tpu.sampling.guidance import NO_GUIDANCE, Guidance


@dataclasses.dataclass(frozen=True)
class Row:
    """A method's row of the table.

    Attributes:
      runs: by seed, the distance at each number of steps, None where the method diverged.
      cost: operations of all training steps, a teacher's and those of its pairs included, relative
        to flow matching.
      phases: trainings that follow each other.
      learning_rate: the optimizer's peak, of the training that is scored.
      guidance: of its samples, by number of steps.
    """

    name: str
    runs: Sequence[dict[int, float] | None]
    cost: float
    phases: int
    learning_rate: float
    guidance: Guidance = NO_GUIDANCE

    @property
    def diverged(self) -> int:
        return sum(run is None for run in self.runs)

    @functools.cached_property
    def distances(self) -> dict[int, tuple[float, float]]:
        """Mean and standard deviation over the seeds that did not diverge, by number of steps."""
        runs = [run for run in self.runs if run is not None]
        if not runs:
            return {}
        values = {n: [run[n] for run in runs] for n in runs[0]}
        return {
            n: (float(np.mean(v)), float(np.std(v, ddof=1)) if len(v) > 1 else 0.0)
            for n, v in values.items()
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "distances": {
                str(n): {"mean": mean, "std": std} for n, (mean, std) in self.distances.items()
            },
            "cost": self.cost,
            "phases": self.phases,
            "learning_rate": self.learning_rate,
            "guidance": self.guidance.describe(self.distances),
            "guidance_interval": list(self.guidance.interval),
            "seeds": len(self.runs),
            "diverged": self.diverged,
        }


def table(metric: str, steps: Sequence[int], rows: Sequence[Row]) -> list[str]:
    """The rows as lines: mean and, over several seeds, spread at each number of steps."""
    spread = any(len(row.runs) > 1 for row in rows)
    width = max(len(row.name) for row in rows)
    cell = 16 if spread else 9
    lines = [f"{metric:<{width}}" + "".join(f"{n:>{cell}}" for n in steps)]
    lines[0] += f"{'cost':>8}{'phases':>8}{'rate':>8}"
    for row in rows:
        cells = []
        for n in steps:
            if n not in row.distances:
                # A method that makes its samples in one step has no others.
                cells.append("-" if row.distances else "diverged")
                continue
            mean, std = row.distances[n]
            cells.append(f"{mean:.3g} ± {std:.2g}" if spread else f"{mean:.3g}")
        guided = set(row.guidance.describe(row.distances).values()) - {1.0}
        note = f"  guided {row.guidance}" if guided else ""
        note += f"  {row.diverged} of {len(row.runs)} seeds diverged" if row.diverged else ""
        lines.append(
            f"{row.name:<{width}}"
            + "".join(f"{text:>{cell}}" for text in cells)
            + f"{row.cost:>8.2f}{row.phases:>8}{row.learning_rate:>8.2g}{note}"
        )
    return lines

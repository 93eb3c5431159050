"""Estimates the time of a step from the compiler's cycles, beside the roofline.

Usage:
  estimate = Estimate.of(operations(program, chip), moved, roofline, mesh)
  print(estimate.seconds, estimate.mfu(model_flops / chips), estimate.figures())
"""

from collections.abc import Sequence
import dataclasses
import re
from typing import Any

from jax.sharding import Mesh

from shortcut_tpu.compiled.collectives import Collective
from shortcut_tpu.compiled.cycles import ATTENTION, KINDS, PRODUCTS, Operation, totals
from shortcut_tpu.compiled.roofline import Roofline, transfer_seconds

# So many operations are named.
DEAREST = 20


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The seconds of a call.

    Attributes:
      operations: with the compiler's cycles.
      roofline: of the same program.
      waiting: seconds of the transfers between chips during which nothing is computed.
      hidden: of those that something is computed beside.
    """

    operations: Sequence[Operation]
    roofline: Roofline
    waiting: float
    hidden: float

    @classmethod
    def of(
        cls,
        operations: Sequence[Operation],
        collectives: Sequence[Collective],
        roofline: Roofline,
        mesh: Mesh,
    ) -> "Estimate":
        """Of a program with these operations and transfers."""
        seconds = {True: 0.0, False: 0.0}
        for collective in collectives:
            seconds[collective.overlapped] += transfer_seconds(collective, roofline.chip, mesh)
        return cls(operations, roofline, seconds[False], seconds[True])

    @property
    def cycles(self) -> int:
        """Of all operations, one after another."""
        return sum(operation.total for operation in self.operations)

    @property
    def seconds(self) -> float:
        """What the operations take and the transfers that nothing hides; no less than the roofline.

        What runs beside the operations, copies and hidden transfers, counts only there.
        """
        return max(self.cycles / self.roofline.chip.clock + self.waiting, self.roofline.seconds)

    def mfu(self, model_flops_per_chip: float) -> float:
        """The model FLOP utilisation of a step that takes so long."""
        return model_flops_per_chip / self.roofline.chip.bf16_flops / self.seconds

    def figures(self, model_flops_per_chip: float) -> dict[str, Any]:
        """For JSON; none where the compiler gives no cycles."""
        if not self.cycles:
            return {}
        by_kind = totals(self.operations, lambda operation: operation.kind)
        products = [o for o in self.operations if o.kind in (PRODUCTS, ATTENTION)]
        return {
            "estimated_cycles": self.cycles,
            "estimated_seconds": self.seconds,
            "estimated_mfu": self.mfu(model_flops_per_chip),
            "clock_hz": self.roofline.chip.clock,
            "cycles_by_kind": {kind: by_kind[kind] for kind in KINDS if kind in by_kind},
            "cycles_by_function": totals(self.operations, lambda o: o.function),
            "padding_cycles": sum(o.padding * o.count for o in products),
            "transfer_seconds": {"waiting": self.waiting, "hidden": self.hidden},
            "dearest": [operation.figures() for operation in self.operations[:DEAREST]],
        }


def estimate_lines(figures: dict[str, Any]) -> list[str]:
    """The figures of an estimate, among those of a report, as lines for a person."""
    clock, seconds = figures["clock_hz"], figures["estimated_seconds"]
    rate = figures["batch_size"] / figures["chips"] / seconds
    kinds = figures["cycles_by_kind"]
    products = kinds.get(PRODUCTS, 0) + kinds.get(ATTENTION, 0)
    parts = ", ".join(f"{kind} {1e3 * cycles / clock:.3g}" for kind, cycles in kinds.items())
    padding = f"{figures['padding_cycles'] / products:.0%}" if products else "none"
    moved = figures["transfer_seconds"]
    return [
        f"estimate     the compiler's own: {1e3 * seconds:.4g} ms a call, "
        f"{figures['estimated_cycles'] / 1e6:.4g} M cycles at {clock / 1e9:.4g} GHz; "
        f"{rate:.4g} rows/s a chip, MFU {100 * figures['estimated_mfu']:.0f} %",
        f"             in ms: {parts}",
        f"             padding {padding} of products and attention; transfers "
        f"{1e3 * moved['waiting']:.3g} ms alone, {1e3 * moved['hidden']:.3g} ms beside the rest",
    ]


def explain_lines(figures: dict[str, Any]) -> list[str]:
    """The dearest operations with the lines that they come from, for a person."""
    lines = [f"{'ms':>8} {'share':>6} {'times':>5}  kind; line, pass and operation; result"]
    for operation in figures["dearest"]:
        total, where = operation["total_cycles"], operation["where"]
        array = re.search(r"\w+\[[\d,]*\](\{[\d,]*)?", operation["shape"])
        result = array[0] + ("}" if array[1] else "") if array else ""
        lines.append(
            f"{1e3 * total / figures['clock_hz']:8.3f} {total / figures['estimated_cycles']:6.1%}"
            f" {operation['count']:5}  {operation['kind']}; {operation['source'] or 'no line'} "
            f"{_direction(where)}{where.rpartition('/')[2] or operation['name']}; {result}"
        )
    return lines


def _direction(where: str) -> str:
    """Which pass an operation belongs to, by its name in JAX; nothing of a forward one."""
    if "rematted_computation" in where:
        return "recomputed "
    return "backward " if "transpose(" in where else ""

"""Reads the cycles that the TPU compiler's scheduler assigned to each operation.

Fusions, copies, converts, reductions and slices carry `estimated_cycles` in their `backend_config`.
Transfers between chips, copies that run beside the computation and Pallas kernels carry none.

Usage:
  for operation in operations(Program.parse(compiled.as_text()), chip):
      print(operation.total, operation.kind, operation.source)
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import dataclasses
import re
from typing import Any

from shortcut_tpu.compiled.cost import kernel_cost, product_flops
from shortcut_tpu.compiled.hlo import Computation, Instruction, Program
from shortcut_tpu.compiled.sources import Frame
from shortcut_tpu.pod.topologies import Chip
from shortcut_tpu.training.flops import Kernel

PRODUCTS, ATTENTION, NORMS, STACKS = "products", "attention", "norms and modulation", "stacks"
OPTIMIZER, COPIES, KERNELS, REST = "optimizer and averages", "copies", "kernels", "rest"
KINDS = (PRODUCTS, ATTENTION, NORMS, STACKS, OPTIMIZER, COPIES, KERNELS, REST)

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_LANES = 128
_PRODUCTS = {"convolution", "dot"}
_SLICES = {"dynamic-slice", "dynamic-update-slice"}
_NAMING = {"parameter", "constant", "bitcast", "tuple", "get-tuple-element"}
# What changes no number but its place and format.
_MOVES = {
    *("copy", "transpose", "reshape", "slice", "concatenate", "pad", "reverse", "convert"),
    *("broadcast", "copy-start", "copy-done"),
    *_SLICES,
}
_ATTENTION = re.compile(r"\b(attention|dot_product_attention|flash_attention|softmax)\b")
_NORMS = re.compile(r"\b(layer_norm|modulate|modulations)\b")


@dataclasses.dataclass(frozen=True)
class Operation:
    """An instruction that is executed by itself.

    Attributes:
      name: in the program.
      shape: of its result, with layouts.
      cycles: of one execution.
      count: executions in one call of the program.
      kind: one of KINDS.
      padding: of its cycles, those that its products at the chip's peak spend on nothing: with the
        contracted length rounded up to the side of the multiplying unit and the result's fastest
        axis to the lanes.
      function: the innermost of this package's functions that asked for it; "" where none is told.
      source: the line, such as models/dit.py:193.
      where: its name in JAX.
    """

    name: str
    shape: str
    cycles: int
    count: int
    kind: str
    padding: int
    function: str
    source: str
    where: str

    @property
    def total(self) -> int:
        """Cycles of all executions."""
        return self.cycles * self.count

    def figures(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self) | {"total_cycles": self.total}


def operations(
    program: Program, chip: Chip, kernels: Mapping[Kernel, int] | None = None
) -> list[Operation]:
    """All operations of a program that the compiler gives cycles, the dearest first.

    Args:
      program: compiled for a TPU; for another device it carries no cycles, and the list is empty.
      chip: that it was compiled for.
      kernels: operations of each Pallas kernel in it, from `kernel_flops`; a kernel counts with the
        cycles that its products take at the chip's peak.
    """
    found = []
    for name, count in program.sequential().items():
        computation = program.computations[name]
        for instruction in computation.instructions:
            kernel = kernel_cost(computation, instruction, kernels or {})
            told = _CYCLES.search(instruction.attributes)
            if kernel is not None:
                cycles = round(kernel / chip.bf16_flops * chip.clock)
            elif told:
                cycles = int(told[1])
            else:
                continue
            found.append(_describe(program, computation, instruction, cycles, count, chip))
    return sorted(found, key=lambda operation: -operation.total)


def totals(found: Iterable[Operation], key: Callable[[Operation], str]) -> dict[str, int]:
    """Cycles by whatever the key tells apart, the most first."""
    sums: dict[str, int] = {}
    for operation in found:
        sums[key(operation)] = sums.get(key(operation), 0) + operation.total
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def _describe(
    program: Program,
    computation: Computation,
    instruction: Instruction,
    cycles: int,
    count: int,
    chip: Chip,
) -> Operation:
    inside = list(_inside(program, computation, instruction))
    frames = program.sources.frames(instruction.attributes)
    named = re.search(r'op_name="([^"]*)"', instruction.attributes)
    where = named[1] if named else ""
    nearest = next((frame for frame in frames if frame.ours), None)
    return Operation(
        name=instruction.name,
        shape=instruction.shape,
        cycles=cycles,
        count=count,
        kind=_kind(instruction, {part.op for _, part in inside}, frames, where),
        padding=min(_padding(inside, chip), cycles),
        function=nearest.function if nearest else "",
        source=(nearest or frames[0]).short if frames else "",
        where=where,
    )


def _inside(
    program: Program, computation: Computation, instruction: Instruction
) -> Iterator[tuple[Computation, Instruction]]:
    """What an instruction executes: itself, or of a fusion all that is fused."""
    if instruction.op != "fusion":
        yield computation, instruction
        return
    for called in instruction.called:
        fused = program.computations[called]
        for part in fused.instructions:
            yield from _inside(program, fused, part)


def _kind(instruction: Instruction, ops: set[str], frames: list[Frame], where: str) -> str:
    if instruction.op == "custom-call":
        return KERNELS
    functions = " ".join(frame.function for frame in frames)
    attends = bool(_ATTENTION.search(functions) or _ATTENTION.search(where))
    if ops & _PRODUCTS:
        return ATTENTION if attends else PRODUCTS
    if ops - _NAMING <= _MOVES:
        return STACKS if ops & _SLICES else COPIES
    if attends:
        return ATTENTION
    # Of the step's own lines only the draws and what it differentiates are none of the update's.
    if re.search(r"\btrain_step(?= |$)", functions) and not re.search(
        r"\b(loss_fn|sample_latents)\b", functions
    ):
        return OPTIMIZER
    return NORMS if _NORMS.search(functions) else REST


def _padding(inside: list[tuple[Computation, Instruction]], chip: Chip) -> int:
    wasted = 0.0
    for computation, part in inside:
        if part.op in _PRODUCTS:
            flops, out = product_flops(computation, part), part.results[0]
            contracted = flops / (2 * out.size)
            if contracted:
                longer = _up_to(contracted, chip.mxu_side) / contracted
                wider = _up_to(out.fastest, _LANES) / out.fastest
                wasted += flops * (longer * wider - 1)
    return round(wasted / chip.bf16_flops * chip.clock)


def _up_to(length: float, multiple: int) -> float:
    return -(-length // multiple) * multiple

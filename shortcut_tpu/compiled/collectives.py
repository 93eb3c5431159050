"""Lists a program's transfers between devices: operation, bytes, mesh axis, count, overlap.

Usage:
  program = Program.parse(compiled.as_text())
  for found in collectives(program, {"data": 64, "fsdp": 1, "tensor": 4}):
      print(found.op, found.axis, found.bytes, found.count, found.overlapped)
"""

from collections.abc import Mapping
import dataclasses
import math
import re

import numpy as np

from shortcut_tpu.compiled import transfers
from shortcut_tpu.compiled.hlo import Array, Computation, Instruction, Program

_OPS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# What takes time between the start of a transfer and its end, so that the two overlap.
_COMPUTE = {"fusion", "convolution", "dot", "custom-call", "while", "call", "conditional", "reduce"}
# What several slices exchange over the data centre network, each device with its likes.
DCN = "slices"


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program.

    Attributes:
      op: such as all-reduce. A reduce-scatter that the TPU compiler writes as a fused all-reduce
        goes by its own name.
      axis: the mesh axes over which it moves, joined by "+", or DCN.
      bytes: of one execution on one device: the larger of what goes in and what comes out, so a
        gather counts what was gathered and a reduce-scatter what was summed.
      count: executions in one call of the program.
      overlapped: whether something is computed between its start and its end.
      group: devices that take part together.
      where: the JAX operations it stands for.
    """

    op: str
    axis: str
    bytes: int
    count: int
    overlapped: bool
    group: int
    where: str

    @property
    def total_bytes(self) -> int:
        return self.bytes * self.count

    @property
    def wire_bytes(self) -> float:
        """What a device sends in all executions, by the best algorithms on a ring."""
        share = (self.group - 1) / self.group
        if self.op == "all-reduce":
            return 2 * share * self.total_bytes
        if self.op in ("collective-permute", "collective-broadcast", "send"):
            return self.total_bytes
        return share * self.total_bytes


def collectives(program: Program, mesh_shape: Mapping[str, int]) -> list[Collective]:
    """All that a program moves between devices, in the order of its text.

    Args:
      program: the compiled program of one slice.
      mesh_shape: sizes of the mesh axes within a slice.
    """
    found = []
    begun = transfers.started(program)
    for name, times in program.sequential().items():
        computation = program.computations[name]
        seen: set[str] = set()
        for index, instruction in enumerate(computation.instructions):
            if instruction.op == "send":
                found.append(_sent_to_other_slices(computation, index, times))
            for inner, fused_in in _collectives_in(program, instruction):
                if fused_in is not None and transfers.carried_on(fused_in, begun):
                    continue
                channel = inner.attribute("channel_id")
                # One transfer spread over several fusions carries its channel through all.
                if fused_in is not None and channel is not None:
                    if channel in seen:
                        continue
                    seen.add(channel)
                found.append(
                    _describe(program, mesh_shape, computation, index, inner, fused_in, times)
                )
    return [collective for collective in found if collective.axis]


def _sent_to_other_slices(computation: Computation, index: int, times: int) -> Collective:
    send = computation.instructions[index]
    done = next((i for i in computation.instructions if i.op == "send-done"), send)
    between = computation.instructions[index + 1 : computation.instructions.index(done)]
    return Collective(
        op="send",
        axis=DCN,
        bytes=send.results[0].bytes,
        count=times,
        overlapped=any(i.op in _COMPUTE for i in between),
        group=2,
        where=_where(send),
    )


def _collectives_in(
    program: Program, instruction: Instruction
) -> list[tuple[Instruction, Computation | None]]:
    """Collectives that an instruction is, or that are fused or wrapped in it."""
    base = instruction.op.removesuffix("-start")
    if base in _OPS:
        return [(instruction, None)]
    if instruction.op not in ("fusion", "async-start"):
        return []
    return [
        (inner, program.computations[called])
        for called in instruction.called
        for inner_instruction in program.computations[called].instructions
        for inner, _ in _collectives_in(program, inner_instruction)
    ]


def _describe(
    program: Program,
    mesh_shape: Mapping[str, int],
    computation: Computation,
    index: int,
    collective: Instruction,
    fused_in: Computation | None,
    times: int,
) -> Collective:
    op = collective.op.removesuffix("-start")
    scope = fused_in or computation
    size = max(sum(a.bytes for a in _moved(collective)), _operand_bytes(scope, collective))
    if op == "all-reduce" and fused_in is not None and "all-reduce-scatter" in fused_in.name:
        op = "reduce-scatter"
    axis, group = _axis(collective, mesh_shape)
    return Collective(
        op=op,
        axis=axis,
        bytes=size,
        count=times,
        overlapped=_overlapped(program, computation, index, fused_in),
        group=group,
        where=_where(collective),
    )


def _moved(collective: Instruction) -> tuple[Array, ...]:
    """Result arrays of a collective; the start of an asynchronous one also lists its operands."""
    results = collective.results
    if not collective.op.endswith("-start"):
        return results
    if collective.op == "all-reduce-start":
        return results
    # (operands, results, context ...): operands and results are equal in number.
    count = len(collective.operands)
    return results[count : 2 * count]


def _operand_bytes(scope: Computation, collective: Instruction) -> int:
    operands = (scope.by_name.get(name) for name in collective.operands)
    return sum(a.bytes for operand in operands if operand is not None for a in operand.results)


def _overlapped(
    program: Program, computation: Computation, index: int, fused_in: Computation | None
) -> bool:
    start = computation.instructions[index]
    after = computation.instructions[index + 1 :]
    if start.op.endswith("-start"):
        done = start.op.removesuffix("-start") + "-done"
        for instruction in after:
            if instruction.op == done and start.name in instruction.operands:
                return False
            if instruction.op in _COMPUTE:
                return True
        return False
    if fused_in is not None and transfers.targets(fused_in, transfers.START):
        for instruction in after:
            called = [program.computations[name] for name in instruction.called]
            if any(transfers.targets(inner, transfers.DONE) for inner in called):
                return False
            if instruction.op in _COMPUTE:
                return True
    return False


def _where(instruction: Instruction) -> str:
    name = re.search(r'op_name="([^"]*)"', instruction.attributes)
    return name[1] if name else ""


def _axis(collective: Instruction, mesh_shape: Mapping[str, int]) -> tuple[str, int]:
    """Mesh axes along which the members of a group differ, and the group's size."""
    sizes = tuple(mesh_shape.values())
    groups = replica_groups(collective, math.prod(sizes))
    differing = np.zeros(len(sizes), bool)
    for group in groups:
        members = np.stack(np.unravel_index(np.asarray(group), sizes), axis=-1)
        differing |= (members != members[0]).any(axis=0)
    axes = [name for name, differs in zip(mesh_shape, differing, strict=True) if differs]
    return "+".join(axes), max(len(group) for group in groups)


def replica_groups(collective: Instruction, num_devices: int) -> list[list[int]]:
    """Devices, as positions in the flattened mesh, that exchange with each other.

    HLO writes them out, as a permuted range (`[2,4]<=[4,2]T(1,0)`) or as axes of a mesh.
    A permutation's groups are its pairs.
    """
    pairs = collective.attribute("source_target_pairs")
    if pairs is not None:
        return [[int(a), int(b)] for a, b in re.findall(r"\{(\d+),(\d+)\}", pairs)] or [[0]]
    text = collective.attribute("replica_groups") or ""
    if text.startswith("mesh"):
        return _mesh_groups(text)
    iota = re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if iota:
        shape, source = (tuple(map(int, iota[n].split(","))) for n in (1, 2))
        ids = np.arange(np.prod(source)).reshape(source)
        if iota[3]:
            ids = ids.transpose(tuple(map(int, iota[3].split(","))))
        return ids.reshape(shape).tolist()
    written = [[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", text)]
    return written or [list(range(num_devices))]


def _mesh_groups(text: str) -> list[list[int]]:
    """Groups of mesh['a'=4,'b'=2] {'b'}; a part of an axis reads 'a':(2)2, after its first 2."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", text)}
    chosen = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", text[text.index("]") :])
    shape: list[int] = []
    grouped: list[int] = []
    for name, size in sizes.items():
        parts = {int(start): int(n) for axis, start, n in chosen if axis == name and start}
        whole = any(axis == name and not start for axis, start, _ in chosen)
        at = 1
        for start, length in sorted(parts.items()):
            if start > at:
                shape.append(start // at)
            grouped.append(len(shape))
            shape.append(length)
            at = start * length
        if whole:
            grouped.append(len(shape))
        if at < size or whole or not parts:
            shape.append(size // at)
    ids = np.arange(np.prod(shape)).reshape(shape)
    order = [axis for axis in range(len(shape)) if axis not in grouped] + grouped
    members = int(np.prod([shape[axis] for axis in grouped]))
    return ids.transpose(order).reshape(-1, members).tolist()

"""Parses scheduled HLO into instructions, each with how often it is executed.

Usage:
  program = Program.parse(compiled.as_text())
  for instruction, times in program.executed():
      ...
"""

from collections.abc import Iterator
import dataclasses
import functools
import math
import re

from shortcut_tpu.compiled.sources import Sources

DTYPE_BYTES = {
    **dict.fromkeys(("pred", "s8", "u8", "f8e4m3fn", "f8e5m2", "s4", "u4", "s2", "u2"), 1),
    **dict.fromkeys(("bf16", "f16", "s16", "u16"), 2),
    **dict.fromkeys(("f32", "s32", "u32"), 4),
    **dict.fromkeys(("f64", "s64", "u64", "c64"), 8),
    "c128": 16,
}

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
# The shape ends where the operation begins: layouts hold no lower-case word before a parenthesis.
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\(")
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\](\{[^}]*\})?")
_CALLED = re.compile(
    r"\b(?:calls|body|true_computation|false_computation|called_computations|branch_computations)="
    r"(?:%?([\w.\-]+)|\{([^}]*)\})"
)
_CONDITION = re.compile(r"\bcondition=%?([\w.\-]+)")
_KNOWN_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a shape: dtype, dimensions, and whether it lies in HBM and not in VMEM.

    Attributes:
      order: of the axes in memory, the fastest first; empty where the text does not tell.
    """

    dtype: str
    dims: tuple[int, ...]
    in_hbm: bool
    order: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def fastest(self) -> int:
        """Length of the axis whose entries are neighbours in memory: what lies along lanes."""
        axis = self.order[0] if self.order else -1
        return self.dims[axis] if self.dims else 1

    @property
    def bytes(self) -> int:
        return self.size * DTYPE_BYTES.get(self.dtype, 0)


def arrays(shape: str) -> tuple[Array, ...]:
    """The arrays of a shape such as f32[4,8]{1,0} or a tuple of them."""
    return tuple(
        Array(
            dtype,
            tuple(int(n) for n in dims.split(",") if n),
            # S(n) names a memory space; without it an array lies in HBM.
            "S(" not in layout,
            tuple(int(n) for n in re.findall(r"\d+", layout.partition(":")[0])),
        )
        for dtype, dims, layout in _ARRAY.findall(shape)
        if dtype in DTYPE_BYTES
    )


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      operands: names of the instructions whose results it takes.
      attributes: what follows the operands.
    """

    name: str
    op: str
    shape: str
    operands: tuple[str, ...]
    attributes: str
    text: str
    is_root: bool

    @functools.cached_property
    def results(self) -> tuple[Array, ...]:
        return arrays(self.shape)

    @functools.cached_property
    def called(self) -> tuple[str, ...]:
        """Computations that it executes; what a reduction applies is none."""
        names: list[str] = []
        for one, several in _CALLED.findall(self.attributes):
            names += [one] if one else [name.strip(" %") for name in several.split(",")]
        return tuple(names)

    def attribute(self, name: str) -> str | None:
        """The text of an attribute's value up to the next comma outside brackets."""
        start = re.search(rf"\b{name}=", self.attributes)
        if start is None:
            return None
        depth = 0
        for end in range(start.end(), len(self.attributes)):
            character = self.attributes[end]
            depth += (character in "{[(") - (character in "}])")
            if depth == 0 and character == ",":
                return self.attributes[start.end() : end]
        return self.attributes[start.end() :]


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions in the order in which they are scheduled."""

    name: str
    instructions: tuple[Instruction, ...]

    @functools.cached_property
    def by_name(self) -> dict[str, Instruction]:
        return {instruction.name: instruction for instruction in self.instructions}

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Instructions that take the result of each."""
        users: dict[str, list[Instruction]] = {name: [] for name in self.by_name}
        for instruction in self.instructions:
            for name in instruction.operands:
                if name in users:
                    users[name].append(instruction)
        return users

    @property
    def root(self) -> Instruction:
        return next(i for i in reversed(self.instructions) if i.is_root)


@dataclasses.dataclass(frozen=True)
class Program:
    """All computations of a module.

    Attributes:
      entry: name of the computation that a call of the program executes.
      sources: where in Python its instructions come from.
    """

    computations: dict[str, Computation]
    entry: str
    sources: Sources

    @classmethod
    def parse(cls, text: str) -> "Program":
        """Reads `compiled.as_text()`.

        Raises:
          ValueError: it has no entry computation.
        """
        computations: dict[str, Computation] = {}
        entry, name = None, None
        lines: list[str] = []
        for line in text.splitlines():
            header = _COMPUTATION.match(line)
            if header:
                name, lines = header[2], []
                entry = name if header[1] else entry
            elif line.startswith("}") and not line.startswith("}}") and name is not None:
                instructions = tuple(i for i in map(_instruction, lines) if i is not None)
                computations[name] = Computation(name, instructions)
                name = None
            elif name is not None and line.startswith(" "):
                lines.append(line)
            elif name is not None and lines:
                # A kernel's metadata runs over several lines.
                lines[-1] += line
        if entry is None:
            raise ValueError("the text is no HLO module: it has no ENTRY")
        return cls(computations, entry, Sources.parse(text))

    @functools.cached_property
    def times(self) -> dict[str, int]:
        """How often each computation is executed in one call of the program.

        A loop's body counts as often as the loop turns, every branch of a conditional once.
        """
        times = dict.fromkeys(self.computations, 0)

        def visit(name: str, count: int) -> None:
            times[name] += count
            for instruction in self.computations[name].instructions:
                turns = self.trips(instruction) if instruction.op == "while" else 1
                for called in instruction.called:
                    visit(called, count * turns)

        visit(self.entry, 1)
        return times

    def trips(self, loop: Instruction) -> int:
        """How often a `while` turns; 1 where its text does not tell.

        The compiler's own count where there is one; else the bound in the condition, which is all
        of it for the loops that `jax.lax.scan` makes: they count up from 0.
        """
        known = _KNOWN_TRIPS.search(loop.attributes)
        if known:
            return int(known[1])
        condition = _CONDITION.search(loop.attributes)
        bounds = self._integers(condition[1]) if condition else set()
        return bounds.pop() if len(bounds) == 1 else 1

    def _integers(self, name: str) -> set[int]:
        """The scalar integers in a computation and in those that it calls."""
        found: set[int] = set()
        for instruction in self.computations[name].instructions:
            if instruction.op == "constant" and re.match(r"[su](32|64)\[\]", instruction.shape):
                value = re.search(r"constant\((\d+)\)", instruction.text)
                if value:
                    found.add(int(value[1]))
            for called in instruction.called:
                found |= self._integers(called)
        return found

    def executed(self) -> Iterator[tuple[Computation, Instruction, int]]:
        """Every instruction that is executed, with its computation and how often."""
        for name, count in self.times.items():
            if count:
                computation = self.computations[name]
                for instruction in computation.instructions:
                    yield computation, instruction, count

    def sequential(self) -> dict[str, int]:
        """The computations that run instruction by instruction, not fused into one; how often."""
        found: dict[str, int] = {}

        def visit(name: str, count: int) -> None:
            found[name] = found.get(name, 0) + count
            for instruction in self.computations[name].instructions:
                if instruction.op in ("while", "conditional", "call"):
                    turns = self.trips(instruction) if instruction.op == "while" else 1
                    for called in instruction.called:
                        visit(called, count * turns)

        visit(self.entry, 1)
        return found


def _instruction(line: str) -> Instruction | None:
    match = _INSTRUCTION.match(line)
    if match is None:
        return None
    depth, end = 1, match.end()
    while end < len(line) and depth:
        depth += (line[end] in "({[") - (line[end] in ")}]")
        end += 1
    operands = re.findall(r"%([\w.\-]+)", line[match.end() : end])
    return Instruction(
        name=match[2],
        op=match[4],
        shape=match[3],
        operands=tuple(operands),
        attributes=line[end:],
        text=line.strip(),
        is_root=match[1] is not None,
    )

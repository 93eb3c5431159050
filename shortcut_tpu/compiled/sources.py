"""Finds the Python line that an instruction of a compiled program comes from.

The module's text begins with tables of files, functions, lines and frames; an instruction names the
innermost frame of the call that traced it.

Usage:
  sources = Sources.parse(compiled.as_text())
  for frame in sources.frames(instruction.attributes): ...      # the innermost first
"""

from collections.abc import Mapping
import dataclasses
from pathlib import Path
import re
from typing import NamedTuple

from shortcut_tpu.training import experiment

_TABLES = ("FileNames", "FunctionNames", "FileLocations", "StackFrames")
_PACKAGE = Path(__file__).parents[1]
# What calls the functions that are compiled, for every program the same.
_CALLERS = (_PACKAGE / "compiled", Path(experiment.__file__))


class Frame(NamedTuple):
    """A line that was being executed, and the function it is in."""

    file: str
    function: str
    line: int

    @property
    def ours(self) -> bool:
        """Whether it belongs to this package, and to what is compiled."""
        path = Path(self.file)
        return path.is_relative_to(_PACKAGE) and not any(map(path.is_relative_to, _CALLERS))

    @property
    def short(self) -> str:
        """Such as models/dit.py:193; of others' files the last two names."""
        path = Path(self.file)
        named = path.relative_to(_PACKAGE) if self.ours else Path(*path.parts[-2:])
        return f"{named}:{self.line}"


@dataclasses.dataclass(frozen=True)
class Sources:
    """The frames of a module.

    Attributes:
      table: each frame and the number of the one that called it, 0 for none, by number.
    """

    table: Mapping[int, tuple[Frame, int]]

    @classmethod
    def parse(cls, text: str) -> "Sources":
        """Reads the tables at the head of a module; none where there are none."""
        entries: dict[str, dict[int, str]] = {name: {} for name in _TABLES}
        current = None
        for line in text.splitlines():
            if line in entries:
                current = entries[line]
            elif current is not None:
                number, _, entry = line.partition(" ")
                if number.isdigit():
                    current[int(number)] = entry
                elif line:
                    break
        files, functions, locations, frames = entries.values()
        table: dict[int, tuple[Frame, int]] = {}
        for frame_id, entry in frames.items():
            at = _fields(entry)
            where = _fields(locations[at["file_location_id"]])
            frame = Frame(
                files[where["file_name_id"]].strip('"'),
                functions[where["function_name_id"]].strip('"'),
                where["line"],
            )
            # The text counts callers from one and leaves that for none.
            table[frame_id] = (frame, at["parent_frame_id"] - 1)
        return cls(table)

    def frames(self, attributes: str) -> list[Frame]:
        """The frames of an instruction, by its attributes, the innermost first."""
        named = re.search(r"\bstack_frame_id=(\d+)", attributes)
        number = int(named[1]) if named else 0
        found: list[Frame] = []
        while number in self.table:
            frame, number = self.table[number]
            found.append(frame)
        return found


def _fields(entry: str) -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", entry)}

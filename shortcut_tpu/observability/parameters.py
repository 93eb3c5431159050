"""Tables of parameters: by module for the console, every array for TensorBoard.

Usage:
  table = arrays(abstract_state.params)
  say(*overview(table))
"""

from collections.abc import Sequence
import dataclasses
import math
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Array:
    """A parameter array: where it stands, such as ("blocks", "qkv", "kernel"), and its shape."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def arrays(params: Any) -> list[Array]:
    """All arrays of a tree of them, or of their shapes, in its order."""
    return [
        Array(tuple(str(entry.key) for entry in path), tuple(leaf.shape), str(leaf.dtype))
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    ]


def overview(table: Sequence[Array]) -> list[str]:
    """Lines of name, arrays, parameters and share of each module, and their sum."""
    total = sum(array.size for array in table)
    modules: dict[str, list[Array]] = {}
    for array in table:
        modules.setdefault(array.path[0], []).append(array)
    rows = [(name, len(found), sum(a.size for a in found)) for name, found in modules.items()]
    rows.append(("all", len(table), total))
    width = max(len(name) for name, _, _ in rows)
    return [f"{'module':<{width}}  arrays      parameters"] + [
        f"{name:<{width}}  {count:>6}  {size:>14,}  {size / total:>6.1%}"
        for name, count, size in rows
    ]


def markdown(table: Sequence[Array]) -> str:
    """Every array as a row of a Markdown table."""
    lines = ["| array | shape | dtype | parameters |", "|---|---|---|---:|"]
    for array in table:
        shape = " x ".join(map(str, array.shape))
        lines.append(f"| {'.'.join(array.path)} | {shape} | {array.dtype} | {array.size:,} |")
    return "\n".join(lines)

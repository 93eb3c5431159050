"""Runs any number of rows through a program that is sharded by rows.

Rows are padded to whole shares of the devices, and what comes of the padding is cut off.

Usage:
  pending = submit(mesh, program, images)  # returns at once
  features = pending.result()              # waits; on every host
"""

from collections.abc import Callable, Iterable, Iterator
import dataclasses
import functools
from typing import Any

import jax
from jax.sharding import Mesh
import numpy as np

from shortcut_tpu.pod import partitioning


@dataclasses.dataclass(frozen=True)
class Pending:
    """What a program is computing.

    Attributes:
      mesh: its mesh.
      outputs: its arrays, in any tree.
      count: how many rows of them are no padding.
    """

    mesh: Mesh
    outputs: Any
    count: int

    def result(self) -> Any:
        """The rows, as numpy arrays in the same tree; every host must ask."""
        outputs = self.outputs
        if not all(array.is_fully_addressable for array in jax.tree.leaves(outputs)):
            outputs = _everywhere(self.mesh)(outputs)
        return jax.tree.map(lambda array: np.asarray(array)[: self.count], outputs)


def submit(mesh: Mesh, program: Callable[..., Any], *arrays: np.ndarray) -> Pending:
    """Starts `program` on rows that every host has.

    Args:
      mesh: over which the rows are split.
      program: jitted; takes arrays like these, and gives arrays sharded by rows.
      *arrays: [n, ...] each.
    """
    count = len(arrays[0])
    pad = -count % partitioning.row_shards(mesh)
    sharding = partitioning.rows(mesh)
    on_mesh = []
    for array in arrays:
        padded = np.pad(array, ((0, pad), *((0, 0),) * (array.ndim - 1)), mode="edge")
        on_mesh.append(jax.make_array_from_callback(padded.shape, sharding, padded.__getitem__))
    return Pending(mesh, program(*on_mesh), count)


def ahead(started: Iterable[Pending]) -> Iterator[Any]:
    """Results in their order; while one is used the next is computed."""
    waiting: Pending | None = None
    for pending in started:
        if waiting is not None:
            yield waiting.result()
        waiting = pending
    if waiting is not None:
        yield waiting.result()


@functools.cache
def _everywhere(mesh: Mesh) -> Any:
    """Gathers arrays whole onto every host."""
    return jax.jit(lambda arrays: arrays, out_shardings=partitioning.replicated(mesh))

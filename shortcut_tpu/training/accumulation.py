"""A batch taken through the network in parts: only one part's activations are in memory.

The objective sees the whole batch, its draws and its rows as ever: only passes through the network
are cut. The backward pass computes each part once more and adds its gradients to those before.

Usage:
  apply = in_parts(model.apply, batch_size=1024, accumulate=4, shards=64)
"""

from collections.abc import Callable
from typing import Any

import jax

from data_pipeline.errors import UserError


def require_parts(batch_size: int, accumulate: int, shards: int) -> None:
    """Raises a UserError unless each of so many devices can take its rows in so many parts."""
    rows = batch_size // shards
    if rows % accumulate:
        divisors = [n for n in range(1, rows + 1) if rows % n == 0]
        raise UserError(
            f"train.accumulate={accumulate}: {batch_size} rows over {shards} devices are {rows} "
            f"each, so it may be {', '.join(map(str, divisors))}"
        )


def in_parts(
    apply: Callable[..., jax.Array], *, batch_size: int, accumulate: int, shards: int
) -> Callable[..., jax.Array]:
    """The network, taking passes over many rows in parts of `batch_size / accumulate` at most.

    Each part has rows of every device, so nothing moves between devices. A pass over fewer rows
    than that, such as one that makes targets, is taken as it is.

    Args:
      apply: params, arrays [B, ...] and conditions [B] -> [B, ...].
      batch_size: rows of the global batch.
      accumulate: parts that it is taken in; 1 leaves the network as it is.
      shards: devices that the rows lie over.
    """
    if accumulate == 1:
        return apply

    def applied(params: Any, *arrays: jax.Array, **conditions: jax.Array) -> jax.Array:
        count = len(arrays[0])
        parts = _parts(count, batch_size // accumulate, shards)
        if parts == 1:
            return apply(params, *arrays, **conditions)

        def cut(rows: jax.Array) -> jax.Array:
            return rows.reshape(count // parts, parts, *rows.shape[1:]).swapaxes(0, 1)

        def part(given: tuple[tuple[jax.Array, ...], dict[str, jax.Array]]) -> jax.Array:
            return apply(params, *given[0], **given[1])

        # Else the scan would keep all parts' activations for the backward pass.
        part = jax.checkpoint(part, prevent_cse=False)
        out = jax.lax.map(part, jax.tree.map(cut, (arrays, conditions)))
        return out.swapaxes(0, 1).reshape(count, *out.shape[2:])

    return applied


def _parts(count: int, most: int, shards: int) -> int:
    """The least number of equal parts of `count` rows with `most` rows or fewer in each."""
    rows = max(count // shards, 1)
    return next(n for n in range(1, rows + 1) if rows % n == 0 and (count <= n * most or n == rows))

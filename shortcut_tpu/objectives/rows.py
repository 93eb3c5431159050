"""Rows of a batch picked and replaced in strides, so that each device works on its own.

Rows lie over the devices in contiguous blocks. A block of the batch as a subset would lie on a few
devices; every stride-th row lies on all of them, and nothing has to move.

Usage:
  some = take(x, 4)                 # [B, ...] -> [B / 4, ...]
  x = put(x, 4, some * 2)           # back in their places
  both = append(x, some, 4)         # one more row after each group of four
  x, some = detach(both, 4)
"""

import jax
import jax.numpy as jnp


def take(rows: jax.Array, stride: int) -> jax.Array:
    """Every stride-th of the rows [B, ...] -> [B / stride, ...]."""
    return rows.reshape(-1, stride, *rows.shape[1:])[:, 0]


def rest(rows: jax.Array, stride: int) -> jax.Array:
    """The rows [B, ...] that `take` leaves -> [B - B / stride, ...]."""
    return rows.reshape(-1, stride, *rows.shape[1:])[:, 1:].reshape(-1, *rows.shape[1:])


def merge(taken: jax.Array, others: jax.Array, stride: int) -> jax.Array:
    """Undoes `take` and `rest` of the same rows."""
    grouped = others.reshape(len(taken), stride - 1, *others.shape[1:])
    return jnp.concatenate([taken[:, None], grouped], 1).reshape(-1, *others.shape[1:])


def put(rows: jax.Array, stride: int, new: jax.Array) -> jax.Array:
    """Rows [B, ...] with every stride-th replaced by one of `new` [B / stride, ...]."""
    return merge(new.astype(rows.dtype), rest(rows, stride), stride)


def append(rows: jax.Array, extra: jax.Array, stride: int) -> jax.Array:
    """Rows [B, ...] and, after each group of `stride`, one of `extra` [B / stride, ...]."""
    grouped = rows.reshape(-1, stride, *rows.shape[1:])
    joined = jnp.concatenate([grouped, extra[:, None]], axis=1)
    return joined.reshape(-1, *rows.shape[1:])


def detach(rows: jax.Array, stride: int) -> tuple[jax.Array, jax.Array]:
    """Undoes `append`."""
    grouped = rows.reshape(-1, stride + 1, *rows.shape[1:])
    return grouped[:, :-1].reshape(-1, *rows.shape[1:]), grouped[:, -1]

"""Picks and replaces rows of a batch in strides, so that each device works on its own rows.

Rows lie over the devices in contiguous blocks. A block of the batch as a subset would lie on a few
devices; every stride-th row lies on all of them, and nothing has to move.

Usage:
  some = take(x, 4)                 # [B, ...] -> [B / 4, ...]
  x = put(x, 4, some * 2)           # back in their places
  both = append(x, some, 4)         # one more row after each group of four
  x, some = detach(both, 4)
  most = Share(3 / 4)               # all but every fourth
  x = most.put(x, most.take(x) * 2)
"""

import dataclasses

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


@dataclasses.dataclass(frozen=True)
class Share:
    """Rows that make up a share of a batch: every n-th of 1/n, all but every n-th of 1 - 1/n.

    Attributes:
      share: in (0, 1].

    Raises:
      ValueError: it is neither.
    """

    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or abs(self.stride * self._smaller - 1) > 1e-6:
            raise ValueError(f"{self.share} is neither 1/n nor 1 - 1/n for a whole number n")

    @property
    def _most(self) -> bool:
        return 0.5 < self.share < 1

    @property
    def _smaller(self) -> float:
        return 1 - self.share if self._most else self.share

    @property
    def stride(self) -> int:
        """n; a device must hold a multiple of it."""
        return round(1 / self._smaller)

    def take(self, array: jax.Array) -> jax.Array:
        """Those rows of [B, ...]."""
        return (rest if self._most else take)(array, self.stride)

    def rest(self, array: jax.Array) -> jax.Array:
        """The other rows."""
        return (take if self._most else rest)(array, self.stride)

    def put(self, array: jax.Array, new: jax.Array) -> jax.Array:
        """Rows [B, ...] with those replaced by `new`."""
        if self._most:
            return merge(take(array, self.stride), new.astype(array.dtype), self.stride)
        return put(array, self.stride, new)

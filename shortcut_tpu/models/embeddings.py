"""Embeddings of time, step size, label and position for the DiT.

Usage:
  features = sinusoidal(t, 256)                    # [B] -> [B, 256]
  positions = sincos_2d(width=768, side=16)        # [256, 768], constant
"""

import math

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from shortcut_tpu.array_types import Scalars, Vectors

SINUSOID_CHANNELS = 256
MAX_PERIOD = 10_000.0


def sinusoidal(value: Scalars, channels: int = SINUSOID_CHANNELS) -> Float[Array, "B {channels}"]:
    """Cosines, then sines, of `value` at geometrically spaced frequencies 1 .. 1/10000.

    Args:
      value: any float.
      channels: even number of outputs.

    Returns:
      float32.
    """
    half = channels // 2
    frequencies = np.exp(-math.log(MAX_PERIOD) * np.arange(half, dtype=np.float32) / half)
    angles = value.astype(jnp.float32)[:, None] * frequencies[None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def sincos_2d(width: int, side: int) -> Float[np.ndarray, "{side}*{side} {width}"]:
    """Fixed two-dimensional sine-cosine position embedding, row-major over the patches.

    The first half of the channels encodes the column, the second the row, as in MAE and DiT.

    Args:
      width: channels, a multiple of 4.
      side: patches along one edge.

    Returns:
      float32.
    """
    row, column = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    halves = [_sincos(coordinate, width // 2) for coordinate in (column, row)]
    return np.concatenate(halves, axis=1).astype(np.float32)


def sincos_1d(width: int, length: int) -> Float[np.ndarray, "{length} {width}"]:
    """The same for a sequence, width even."""
    return _sincos(np.arange(length), width).astype(np.float32)


def _sincos(coordinate: np.ndarray, channels: int) -> np.ndarray:
    """Coordinates of any shape, n values -> [n, channels]: sines, then cosines."""
    omega = 1.0 / 10_000.0 ** (np.arange(channels // 2) / (channels / 2.0))
    angles = coordinate.reshape(-1, 1) * omega
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def level_of(step_size: jax.Array, finest_level: int) -> jax.Array:
    """log2(1/d): 0 for one step over the whole path, at most `finest_level`."""
    return -jnp.log2(jnp.maximum(step_size.astype(jnp.float32), 2.0**-finest_level))


class ScalarEmbedder(nnx.Module):
    """Embeds a scalar condition: sinusoid, linear, SiLU, linear (DiT, section 3)."""

    def __init__(
        self,
        width: int,
        *,
        kernel_init: nnx.Initializer | None = None,
        rngs: nnx.Rngs,
    ):
        kernel_init = kernel_init or nnx.initializers.normal(0.02)
        self.hidden = nnx.Linear(SINUSOID_CHANNELS, width, kernel_init=kernel_init, rngs=rngs)
        self.out = nnx.Linear(width, width, kernel_init=kernel_init, rngs=rngs)

    def __call__(self, value: Scalars) -> Vectors:
        """Computed in the dtype of the weights."""
        features = sinusoidal(value).astype(self.hidden.kernel.dtype)
        return self.out(nnx.silu(self.hidden(features)))

"""Cuts images into tokens of square patches and puts them together again.

Usage:
  tokens = to_patches(x, 2)            # [B, H, W, C] -> [B, H W / 4, 4 C]
  x = from_patches(tokens, 2)
"""

import math

from jaxtyping import Array, Float

from shortcut_tpu.array_types import Tokens


def to_patches(x: Float[Array, "B H W C"], size: int) -> Tokens:
    """Tokens of width size^2 C of square images, row-major over the patches and within."""
    batch, side, channels = x.shape[0], x.shape[1] // size, x.shape[-1]
    x = x.reshape(batch, side, size, side, size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, side * side, -1)


def from_patches(tokens: Tokens, size: int) -> Float[Array, "B H W C"]:
    """The square images that `to_patches` cut."""
    batch, side = tokens.shape[0], math.isqrt(tokens.shape[1])
    x = tokens.reshape(batch, side, side, size, size, -1).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, side * size, side * size, -1)

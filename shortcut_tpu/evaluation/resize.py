"""Resizes images to a network's input as each protocol does; distances depend on it.

Usage:
  images = RESIZES["tensorflow1"](images, 299)
"""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp
import numpy as np

Resize = Callable[[jax.Array, int], jax.Array]


def tensorflow1(images: jax.Array, size: int) -> jax.Array:
    """Bilinear as TensorFlow 1 did it, and ADM's evaluator does.

    Pixel i of the result is read at i * in / out, as if pixels lay at their corners, so that images
    shift by up to half a pixel; there is no antialiasing. Places are float32, as TensorFlow's: the
    difference is up to 7e-3 of 255.

    Args:
      images: [n, H, W, C].
      size: height and width of the result.
    """
    rows, columns = (_weights(side, size) for side in images.shape[1:3])
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    return product("pw,nhwc->nhpc", columns, product("oh,nhwc->nowc", rows, images))


def _weights(side: int, size: int) -> np.ndarray:
    """[size, side]: what each pixel of a row takes of those of the old row."""
    place = np.arange(size, dtype=np.float32) * (np.float32(side) / np.float32(size))
    lower = np.floor(place).astype(int)
    upper = np.minimum(lower + 1, side - 1)
    weights = np.zeros((size, side), np.float32)
    np.add.at(weights, (np.arange(size), lower), 1 - (place - lower))
    np.add.at(weights, (np.arange(size), upper), place - lower)
    return weights


def _half_pixel(images: jax.Array, size: int, *, antialias: bool) -> jax.Array:
    shape = (len(images), size, size, images.shape[-1])
    return jax.image.resize(images, shape, "bilinear", antialias=antialias)


# Both read at pixel centres; `bilinear` skips pixels where it makes images smaller.
RESIZES: dict[str, Resize] = {
    "tensorflow1": tensorflow1,
    "bilinear": functools.partial(_half_pixel, antialias=False),
    "antialiased": functools.partial(_half_pixel, antialias=True),
}

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


def pillow(images: jax.Array, size: int) -> jax.Array:
    """Bicubic as Pillow resizes bytes: antialiased, rounded after the rows and after the columns.

    Args:
      images: [n, H, W, C], whole numbers from 0 to 255.
      size: height and width of the result.
    """
    rows, columns = (_bicubic_weights(side, size) for side in images.shape[1:3])
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    wide = _whole(product("pw,nhwc->nhpc", columns, images))
    return _whole(product("oh,nhwc->nowc", rows, wide))


def _bicubic_weights(side: int, size: int) -> np.ndarray:
    """[size, side]: what each pixel of a row takes of those of the old row."""
    stretch = max(side / size, 1.0)
    centre = (np.arange(size)[:, None] + 0.5) * side / size
    weights = cubic((np.arange(side) + 0.5 - centre) / stretch, -0.5)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def cubic(distance: np.ndarray, slope: float) -> np.ndarray:
    """The kernel of cubic convolution, of a slope at 1 (Keys 1981, equation 4 at -1/2)."""
    x = np.abs(distance)
    near = (slope + 2) * x**3 - (slope + 3) * x**2 + 1
    far = slope * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _whole(values: jax.Array) -> jax.Array:
    """Rounded to bytes."""
    return cut_off(jnp.clip(values + 0.5, 0, 255))


@jax.custom_jvp
def cut_off(values: jax.Array) -> jax.Array:
    """The largest whole numbers that are not above the values; its derivative is taken to be 1."""
    return jnp.floor(values)


@cut_off.defjvp
def _cut_off_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    return cut_off(*primals), tangents[0]


# Both read at pixel centres; `bilinear` skips pixels where it makes images smaller.
RESIZES: dict[str, Resize] = {
    "tensorflow1": tensorflow1,
    "bilinear": functools.partial(_half_pixel, antialias=False),
    "pillow": pillow,
    "antialiased": functools.partial(_half_pixel, antialias=True),
}

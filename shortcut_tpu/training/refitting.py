"""Fits the embedder of a number anew where the network is told the number on another scale.

A DiT may be told t as it is or a thousand times it, a step size as it is or as a level of a grid.

Usage:
  points = Points(t * 1000, t)
  layers, error = refitted(params, "time_embed", points)    # params by path
"""

from collections.abc import Mapping
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from shortcut_tpu.models.embeddings import MAX_PERIOD, SINUSOID_CHANNELS, sinusoidal

# Of the least squares, over the mean square of a hidden value.
_RIDGE = 1e-6
# A hidden unit rises within about this share of the points.
_RISE = 1 / 16


@dataclasses.dataclass(frozen=True)
class Points:
    """Where the new embedder is to put out what the old one does.

    Attributes:
      before: [m], what the old embedder is told.
      after: [n], what the new one is told.
      mix: [n, m], how the old outputs make up the new ones; the identity if None.
    """

    before: np.ndarray
    after: np.ndarray
    mix: np.ndarray | None = None


def embedded(arrays: Mapping[str, jax.Array], prefix: str, told: np.ndarray) -> jax.Array:
    """What an embedder puts out, in float32: [n] -> [n, width]."""
    hidden = _hidden(arrays[f"{prefix}/hidden/kernel"], arrays[f"{prefix}/hidden/bias"], told)
    return _product(hidden, arrays[f"{prefix}/out/kernel"]) + arrays[f"{prefix}/out/bias"]


def refitted(
    arrays: Mapping[str, jax.Array], prefix: str, points: Points
) -> tuple[dict[str, jax.Array], jax.Array]:
    """An embedder's layers by path, and the relative error of what they put out at the points.

    Each hidden unit rises at a place of its own, where the points are dense steeper than where they
    are not; the outputs follow by least squares. So the fit is smooth between the points.
    """
    target = embedded(arrays, prefix, points.before)
    if points.mix is not None:
        target = _product(jnp.asarray(points.mix, jnp.float32), target)
    kernel, bias = _hinges(points.after, arrays[f"{prefix}/hidden/bias"].size)
    hidden = _hidden(kernel, bias, points.after)
    mean_hidden, mean_target = hidden.mean(0), target.mean(0)
    h, y = hidden - mean_hidden, target - mean_target
    gram = _product(h, h.T)
    gram += _RIDGE * jnp.trace(gram) * jnp.eye(len(gram)) / len(gram)
    out = _product(h.T, jnp.linalg.solve(gram, y))
    layers = {
        f"{prefix}/hidden/kernel": kernel,
        f"{prefix}/hidden/bias": bias,
        f"{prefix}/out/kernel": out,
        f"{prefix}/out/bias": mean_target - _product(mean_hidden, out),
    }
    error = jnp.linalg.norm(_product(h, out) - y) / jnp.linalg.norm(target)
    return layers, error


def _hinges(told: np.ndarray, width: int) -> tuple[jax.Array, jax.Array]:
    """A hidden layer [256, width] that reads one slow sine, which rises with what is told."""
    half = SINUSOID_CHANNELS // 2
    frequencies = np.exp(-math.log(MAX_PERIOD) * np.arange(half) / half)
    slow = int(np.argmin(np.abs(frequencies * told.max() - 1)))
    place = np.sort(np.sin(frequencies[slow] * told.astype(np.float64)))
    index = np.linspace(0, len(place) - 1, width)

    def at(index: np.ndarray) -> np.ndarray:
        return np.interp(index, np.arange(len(place)), place)

    reach = _RISE * len(place)
    slope = 8 / np.maximum(at(index + reach) - at(index - reach), 1e-6)
    kernel = np.zeros((SINUSOID_CHANNELS, width), np.float32)
    kernel[half + slow] = slope
    return jnp.asarray(kernel), jnp.asarray((-slope * at(index)).astype(np.float32))


def _hidden(kernel: jax.Array, bias: jax.Array, told: np.ndarray) -> jax.Array:
    return jax.nn.silu(_product(sinusoidal(jnp.asarray(told)), kernel) + bias)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)

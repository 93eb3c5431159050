"""Embedders of numbers for a network that is told the numbers on another scale.

A DiT may be told t as it is or a thousand times it, a step size as it is or as a level of a grid.
All is computed on the host, in float64. Re-MeanFlow (arXiv 2511.23342) fits the time's embedder of
its teacher likewise before it trains.

Usage:
  points = Points(t * 1000, t)
  layers, error = refitted(layers, points)      # {"hidden/kernel": ..., "hidden/bias": ..., ...}
"""

from collections.abc import Mapping
import dataclasses
import math

import numpy as np

from shortcut_tpu.models.embeddings import MAX_PERIOD, SINUSOID_CHANNELS

Layers = dict[str, np.ndarray]

_HALF = SINUSOID_CHANNELS // 2
_FREQUENCIES = np.exp(-math.log(MAX_PERIOD) * np.arange(_HALF) / _HALF)
# Of the least squares, over the mean square of a hidden value; with less of it the fit is better,
# and a network that computes in bfloat16 worse.
_RIDGE = 1e-6
# A hidden unit's slope: so many units of its argument over twice this share of the points.
_RISE, _GAIN = 1 / 8, 16.0


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


def embedded(layers: Mapping[str, np.ndarray], told: np.ndarray) -> np.ndarray:
    """What an embedder puts out: [n] -> [n, width]."""
    hidden = _hidden(layers["hidden/kernel"], layers["hidden/bias"], told)
    return np.asarray(hidden @ layers["out/kernel"] + layers["out/bias"])


def refitted(layers: Mapping[str, np.ndarray], points: Points) -> tuple[Layers, float]:
    """An embedder, and the relative error of what it puts out at the points.

    Each hidden unit rises at a place of its own, where the points are dense steeper than where they
    are not; the outputs follow by least squares. So the fit is smooth between the points.
    """
    target = embedded(layers, points.before)
    if points.mix is not None:
        target = points.mix @ target
    kernel, bias = _hinges(points.after, layers["hidden/bias"].size)
    hidden = _hidden(kernel, bias, points.after)
    mean_hidden, mean_target = hidden.mean(0), target.mean(0)
    h, y = hidden - mean_hidden, target - mean_target
    gram = h @ h.T
    gram += _RIDGE * np.trace(gram) * np.eye(len(gram)) / len(gram)
    out = h.T @ np.linalg.solve(gram, y)
    fitted = {
        "hidden/kernel": kernel,
        "hidden/bias": bias,
        "out/kernel": out,
        "out/bias": mean_target - mean_hidden @ out,
    }
    return fitted, float(np.linalg.norm(h @ out - y) / np.linalg.norm(target))


def _hinges(told: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A hidden layer [256, width] that reads one slow sine, which rises with what is told."""
    slow = int(np.argmin(np.abs(_FREQUENCIES * told.max() - 1)))
    place = np.sort(np.sin(_FREQUENCIES[slow] * told))
    index = np.linspace(0, len(place) - 1, width)

    def at(index: np.ndarray) -> np.ndarray:
        return np.interp(index, np.arange(len(place)), place)

    reach = _RISE * len(place)
    slope = _GAIN / np.maximum(at(index + reach) - at(index - reach), 1e-6)
    kernel = np.zeros((SINUSOID_CHANNELS, width))
    kernel[_HALF + slow] = slope
    return kernel, -slope * at(index)


def _hidden(kernel: np.ndarray, bias: np.ndarray, told: np.ndarray) -> np.ndarray:
    angles = told.astype(np.float64)[:, None] * _FREQUENCIES
    z = np.concatenate([np.cos(angles), np.sin(angles)], axis=1) @ kernel + bias
    # silu, whose exponential cannot overflow.
    return np.asarray(z * 0.5 * (1 + np.tanh(z / 2)))

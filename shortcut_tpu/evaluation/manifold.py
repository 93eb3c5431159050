"""Precision and recall: how much of each set lies on the manifold of the other.

Usage:
  precision, recall = precision_recall(reference_features, sample_features)
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

_BLOCK = 4096
_PRECISION = jax.lax.Precision.HIGHEST


def precision_recall(
    reference: np.ndarray, samples: np.ndarray, neighbours: int = 3
) -> tuple[float, float]:
    """The share of samples on the reference's manifold, and of the reference on the samples'.

    A set's manifold is the union of the balls around its vectors that reach to the k-th nearest
    other vector of the set. Source: "Improved Precision and Recall Metric for Assessing Generative
    Models" (arXiv 1904.06991, equations 1 and 2). Computed in float32; ADM's evaluator rounds
    distances to half precision, which moves its figures in the third digit or so.

    Args:
      reference: [R, F] features of real images, R > k.
      samples: [N, F] features of samples, N > k.
      neighbours: k.
    """
    # Distances do not change with the origin, but squares of smaller numbers round less.
    origin = reference.mean(0, dtype=np.float64).astype(np.float32)
    reference, samples = (np.asarray(a, np.float32) - origin for a in (reference, samples))
    return (
        _share_inside(samples, reference, _radii(reference, neighbours)),
        _share_inside(reference, samples, _radii(samples, neighbours)),
    )


@functools.partial(jax.jit, static_argnums=2)
def _kth_distances(rows: jax.Array, centres: jax.Array, k: int) -> jax.Array:
    """Squared distances [n] to the k-th nearest centre that is not the row itself."""
    nearest, _ = jax.lax.top_k(-_squared_distances(rows, centres), k + 1)
    return -nearest[:, k]


@jax.jit
def _inside(rows: jax.Array, centres: jax.Array, radii: jax.Array) -> jax.Array:
    """Whether each row [n] lies in any of the balls."""
    return (_squared_distances(rows, centres) <= radii).any(1)


def _squared_distances(rows: jax.Array, centres: jax.Array) -> jax.Array:
    products = jnp.matmul(rows, centres.T, precision=_PRECISION)
    squares = jnp.square(rows).sum(1)[:, None] + jnp.square(centres).sum(1)
    return jnp.maximum(squares - 2 * products, 0)


def _blocks(rows: np.ndarray) -> list[np.ndarray]:
    return [rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK)]


def _radii(vectors: np.ndarray, k: int) -> np.ndarray:
    centres = jnp.asarray(vectors)
    return np.concatenate([_kth_distances(rows, centres, k) for rows in _blocks(vectors)])


def _share_inside(rows: np.ndarray, centres: np.ndarray, radii: np.ndarray) -> float:
    on_device, limits = jnp.asarray(centres), jnp.asarray(radii)
    found = [np.asarray(_inside(block, on_device, limits)) for block in _blocks(rows)]
    return float(np.concatenate(found).mean())

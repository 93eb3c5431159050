"""The Frechet distance of features to real data in float32, and its gradient.

    FD = |m - m_r|^2 + tr C + tr C_r - 2 tr (C_r^(1/2) C C_r^(1/2))^(1/2)

m and C are mean and covariance of generated features, m_r and C_r of real ones. Source: "GANs
Trained by a Two Time-Scale Update Rule" (arXiv 1706.08500, equation 6).

The matrix under the root is a product of two covariances. The variances of Inception's features
differ by a factor of 10^4 or more, those of the product by its square, which is beyond float32: the
eigenvalues of the product would be noise for most directions, and their roots' derivatives larger
noise. So nothing here squares them. Features are taken in coordinates y in which the real ones have
unit variance (V, l the eigenvectors and eigenvalues of C_r):

    y = diag(l)^(-1/2) V^T (f - m_r),   C = V diag(l^(1/2)) K diag(l^(1/2)) V^T

K, the covariance of y, is near the identity where samples are near the data, and has a sound
Cholesky factor L. The trace of the root is the sum of the singular values of A = diag(l) L, found
with the orthogonal factor U of its polar decomposition A = P U, and so is its derivative in K:

    tr (C_r^(1/2) C C_r^(1/2))^(1/2) = tr (U^T A),   d/dK = diag(l) U L^-1 / 2

U comes from a Newton-Schulz iteration. It is made of matrix products, which is what a TPU is fast
at, where an eigendecomposition is a long chain of small steps; and directions whose variance is
below 10^-5 of the largest, which it would take more iterations for, count less instead of
spoiling the others.

Usage:
  real = Real.of(mean, covariance)                   # float64, of a reference file
  y = real.coordinates(features)                     # [B, F]
  fd = distance(real, y.mean(0), y.T @ y / len(y))
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# A TPU would multiply in one pass of bfloat16.
product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)

# Coefficients of x, x^3 and x^5 in an iteration over singular values in [0, 1]. The first multiply
# small ones by 3.4 and take all that have grown into [0.68, 1.14]; the last bring those to 1.
_GROW, _GROW_TURNS = (3.4445, -4.7750, 2.0315), 12
_SETTLE, _SETTLE_TURNS = (15 / 8, -10 / 8, 3 / 8), 3
# Added to generated variances, in units of the real ones and of themselves, so that there is a
# Cholesky factor where samples do not vary. Close to the data the distance changes by its square.
_RIDGE = 1e-5
# Real variances below this share of the largest are no unit to measure generated ones in.
_FLAT = 1e-6


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Real:
    """Moments of real features, and the coordinates y that follow from them.

    Attributes:
      mean: [F].
      basis: [F, F], columns V diag(unit)^-1.
      unit: [F] what 1 is in each coordinate; l^(1/2), or more where the real features are flat.
      weight: [F] l^(1/2) unit, in the place of l where that is not unit^2.
      trace: of the real covariance.
    """

    mean: Any
    basis: Any
    unit: Any
    weight: Any
    trace: Any

    @classmethod
    def of(cls, mean: np.ndarray, covariance: np.ndarray) -> "Real":
        """From moments [F] and [F, F] in float64, as files of statistics hold them."""
        values, vectors = np.linalg.eigh(covariance)
        values = np.clip(values, 0, None)
        unit = np.sqrt(np.maximum(values, max(_FLAT * values[-1], np.finfo(np.float32).tiny)))
        arrays = (mean, vectors / unit, unit, np.sqrt(values) * unit, values.sum())
        return cls(*(np.asarray(array, np.float32) for array in arrays))

    @classmethod
    def abstract(cls, length: int) -> "Real":
        """Shapes of the moments of vectors [length], to compile without the file."""
        shapes = ((length,), (length, length), (length,), (length,), ())
        return cls(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))

    def coordinates(self, features: jax.Array) -> jax.Array:
        """Features [B, F] of any float dtype to y [B, F]."""
        return product(features.astype(jnp.float32) - self.mean, self.basis)


def distance(real: Real, mean: jax.Array, second: jax.Array) -> jax.Array:
    """FD of samples with these moments of y: mean [F] and E[y y^T] [F, F]."""
    covariance = second - jnp.outer(mean, mean)
    covariance += jnp.diag(_RIDGE * (1 + jnp.diagonal(covariance)))
    spread = jnp.square(mean) + jnp.diagonal(covariance)
    root = trace_of_root(real.weight, covariance)
    return jnp.sum(jnp.square(real.unit) * spread) + real.trace - 2 * root


@jax.custom_vjp
def trace_of_root(weight: jax.Array, covariance: jax.Array) -> jax.Array:
    """tr (W K W)^(1/2), W = diag(weight [F] >= 0) and K [F, F] positive definite."""
    return _root(weight, covariance)[0]


def _root(weight: jax.Array, covariance: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The trace of the root, and its derivative in the covariance."""
    factor = jnp.linalg.cholesky(covariance)
    scaled = weight[:, None] * factor
    rotation = orthogonal_factor(scaled)
    # X L = W U, solved as L^T X^T = (W U)^T.
    slope = jax.scipy.linalg.solve_triangular(
        factor, (weight[:, None] * rotation).T, trans="T", lower=True
    )
    return jnp.sum(rotation * scaled), (slope + slope.T) / 4


def _root_forward(weight: jax.Array, covariance: jax.Array) -> tuple[jax.Array, Any]:
    value, slope = _root(weight, covariance)
    return value, (weight, slope)


def _root_backward(kept: Any, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    weight, slope = kept
    # The weights are of real data: nothing is trained through them.
    return jnp.zeros_like(weight), cotangent * slope


trace_of_root.defvjp(_root_forward, _root_backward)


def orthogonal_factor(matrix: jax.Array) -> jax.Array:
    """U [F, F] of the polar decomposition A = P U, P symmetric; A of any scale.

    Singular values below about 10^-6 of the norm of A stay below 1 in U.
    """

    def turn(coefficients: tuple[float, float, float], x: jax.Array) -> jax.Array:
        a, b, c = coefficients
        gram = product(x.T, x)
        return a * x + product(x, b * gram + c * product(gram, gram))

    x = matrix / (jnp.linalg.norm(matrix) + jnp.finfo(jnp.float32).tiny)
    x = jax.lax.fori_loop(0, _GROW_TURNS, lambda _, x: turn(_GROW, x), x)
    return jax.lax.fori_loop(0, _SETTLE_TURNS, lambda _, x: turn(_SETTLE, x), x)

"""Distances between two sets of feature vectors, in float64.

Usage:
  statistics = GaussianStatistics.empty(64).add(features).add(more)
  distance = frechet_distance(statistics, reference)
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class GaussianStatistics:
    """Sums from which mean and covariance follow; adding rows in any order gives the same.

    Attributes:
      count: rows so far.
      total: [F] sum of the rows.
      outer: [F, F] sum of their outer products.
    """

    count: int
    total: np.ndarray
    outer: np.ndarray

    @classmethod
    def empty(cls, features: int) -> "GaussianStatistics":
        return cls(0, np.zeros(features), np.zeros((features, features)))

    def add(self, features: np.ndarray) -> "GaussianStatistics":
        """With the rows [N, F] of any float dtype added."""
        rows = features.astype(np.float64)
        return GaussianStatistics(
            self.count + len(rows), self.total + rows.sum(0), self.outer + rows.T @ rows
        )

    @property
    def mean(self) -> np.ndarray:
        return self.total / self.count

    @property
    def covariance(self) -> np.ndarray:
        """The unbiased covariance, divided by count - 1."""
        centred = self.outer - self.count * np.outer(self.mean, self.mean)
        return centred / (self.count - 1)


def frechet_distance(a: GaussianStatistics, b: GaussianStatistics) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)).

    Source: "GANs Trained by a Two Time-Scale Update Rule" (arXiv 1706.08500, equation 6). The
    trace of the root is the sum of the roots of the eigenvalues of C_a^(1/2) C_b C_a^(1/2), a
    symmetric matrix: no complex root, no epsilon on a singular covariance.
    """
    values, vectors = np.linalg.eigh(a.covariance)
    root_a = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    cross = np.linalg.eigvalsh(root_a @ b.covariance @ root_a)
    trace_root = np.sqrt(np.clip(cross, 0, None)).sum()
    difference = a.mean - b.mean
    return float(
        difference @ difference + np.trace(a.covariance) + np.trace(b.covariance) - 2 * trace_root
    )

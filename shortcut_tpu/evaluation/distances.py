"""Distances between two sets of feature vectors, in float64.

Usage:
  statistics = GaussianStatistics.empty(64).add(features).add(more)
  distance = frechet_distance(statistics, reference)
"""

import dataclasses
from typing import Protocol

import numpy as np


class Moments(Protocol):
    """What a Frechet distance needs of a set of vectors."""

    @property
    def mean(self) -> np.ndarray:
        """[F]."""

    @property
    def covariance(self) -> np.ndarray:
        """[F, F]."""


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """Moments that are known, as files of statistics hold them.

    Attributes:
      mean: [F].
      covariance: [F, F].
    """

    mean: np.ndarray
    covariance: np.ndarray


@dataclasses.dataclass(frozen=True)
class GaussianStatistics:
    """Sums from which mean and covariance follow.

    They are of the rows less the first one: sums of squares of the rows themselves lose all digits
    of a spread that is small beside the mean. The first row is the same however rows are batched.

    Attributes:
      count: rows so far.
      shift: [F], the first row; zeros before there is one.
      total: [F] sum of the shifted rows.
      outer: [F, F] sum of their outer products.
    """

    count: int
    shift: np.ndarray
    total: np.ndarray
    outer: np.ndarray

    @classmethod
    def empty(cls, features: int) -> "GaussianStatistics":
        return cls(0, np.zeros(features), np.zeros(features), np.zeros((features, features)))

    def add(self, features: np.ndarray) -> "GaussianStatistics":
        """With the rows [N, F] of any float dtype added."""
        rows = features.astype(np.float64)
        shift = self.shift if self.count or not len(rows) else rows[0]
        rows = rows - shift
        return GaussianStatistics(
            self.count + len(rows), shift, self.total + rows.sum(0), self.outer + rows.T @ rows
        )

    @property
    def mean(self) -> np.ndarray:
        return self.shift + self.total / self.count

    @property
    def covariance(self) -> np.ndarray:
        """The unbiased covariance, divided by count - 1."""
        centred = self.outer - np.outer(self.total, self.total) / self.count
        return centred / (self.count - 1)


def frechet_distance(a: Moments, b: Moments) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)).

    Source: "GANs Trained by a Two Time-Scale Update Rule" (arXiv 1706.08500, equation 6). The
    trace of the root is the sum of the roots of the eigenvalues of C_a^(1/2) C_b C_a^(1/2), a
    symmetric matrix: no complex root, no epsilon on a singular covariance.
    """
    covariance_a, covariance_b = a.covariance, b.covariance
    values, vectors = np.linalg.eigh(covariance_a)
    root_a = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    cross = np.linalg.eigvalsh(root_a @ covariance_b @ root_a)
    trace_root = np.sqrt(np.clip(cross, 0, None)).sum()
    difference = a.mean - b.mean
    return float(
        difference @ difference + np.trace(covariance_a) + np.trace(covariance_b) - 2 * trace_root
    )


@dataclasses.dataclass(frozen=True)
class ClassSums:
    """Sums from which the Inception Score follows, over samples in their order.

    Attributes:
      split: samples a split; the last may hold fewer.
      counts: [S] samples of each split so far.
      probabilities: [S, K] sums of p(y | x).
      negentropy: [S] sums of sum_y p(y | x) log p(y | x).
    """

    split: int
    counts: np.ndarray
    probabilities: np.ndarray
    negentropy: np.ndarray

    @classmethod
    def empty(cls, num_samples: int, classes: int, split: int = 5000) -> "ClassSums":
        splits = -(-num_samples // split)
        return cls(split, np.zeros(splits), np.zeros((splits, classes)), np.zeros(splits))

    def add(self, logits: np.ndarray, start: int) -> "ClassSums":
        """With the logits [N, K] of samples `start`, `start + 1`, ... added."""
        log_p = logits.astype(np.float64)
        log_p = log_p - log_p.max(1, keepdims=True)
        log_p -= np.log(np.exp(log_p).sum(1, keepdims=True))
        p = np.exp(log_p)
        place = (start + np.arange(len(p))) // self.split
        counts, negentropy = self.counts.copy(), self.negentropy.copy()
        probabilities = self.probabilities.copy()
        np.add.at(counts, place, 1)
        np.add.at(probabilities, place, p)
        np.add.at(negentropy, place, (p * log_p).sum(1))
        return ClassSums(self.split, counts, probabilities, negentropy)


def inception_score(sums: ClassSums) -> float:
    """The mean over splits of exp(E_x KL(p(y | x) || p(y))), p(y) the split's mean of p(y | x).

    Source: "Improved Techniques for Training GANs" (arXiv 1606.03498, section 4). As in ADM's
    evaluator the logits are those without the classifier's bias.
    """
    seen = sums.counts > 0
    counts = sums.counts[seen]
    marginal = sums.probabilities[seen] / counts[:, None]
    # x log x is 0 at 0.
    log_marginal = np.log(np.where(marginal > 0, marginal, 1))
    divergence = sums.negentropy[seen] / counts - (marginal * log_marginal).sum(1)
    return float(np.exp(divergence).mean())

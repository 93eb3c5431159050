"""The Frechet distance against scipy's matrix root and against closed forms."""

import numpy as np
import pytest
import scipy.linalg

from shortcut_tpu.evaluation.distances import GaussianStatistics, frechet_distance


def statistics_of(rows):
    return GaussianStatistics.empty(rows.shape[1]).add(rows)


def test_agrees_with_scipys_matrix_square_root():
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), the root by scipy.linalg.sqrtm."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(500, 20)) @ rng.normal(size=(20, 20)) + rng.normal(size=20)
    b = rng.normal(size=(400, 20)) @ rng.normal(size=(20, 20))
    ca, cb = np.cov(a.T), np.cov(b.T)
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(
        ca + cb - 2 * scipy.linalg.sqrtm(ca @ cb).real
    )
    assert frechet_distance(statistics_of(a), statistics_of(b)) == pytest.approx(expected, 1e-9)


def test_independent_axes_have_a_closed_form():
    """For diagonal covariances it is |m_a - m_b|^2 + sum (s_a - s_b)^2."""
    count = 1000
    mean_a, mean_b = np.array([1.0, -2.0, 0.5]), np.zeros(3)
    std_a, std_b = np.array([1.0, 2.0, 0.5]), np.array([0.5, 2.0, 1.5])

    def exact(mean, std):
        covariance = np.diag(std**2)
        outer = covariance * (count - 1) + count * np.outer(mean, mean)
        return GaussianStatistics(count, mean * count, outer)

    expected = np.square(mean_a - mean_b).sum() + np.square(std_a - std_b).sum()
    found = frechet_distance(exact(mean_a, std_a), exact(mean_b, std_b))
    assert found == pytest.approx(expected, 1e-9)


def test_singular_covariances_are_no_trouble():
    """Fewer samples than features, as sample sheets have: zero to itself but for rounding."""
    rows = np.random.default_rng(0).normal(size=(10, 64))
    assert frechet_distance(statistics_of(rows), statistics_of(rows)) == pytest.approx(0, abs=1e-4)
    assert np.isfinite(frechet_distance(statistics_of(rows), statistics_of(rows[:, ::-1])))


def test_statistics_are_numpys_whatever_the_batches():
    rows = np.random.default_rng(0).normal(size=(101, 5)).astype(np.float32) + 3
    whole = statistics_of(rows)
    parts = GaussianStatistics.empty(5)
    for part in np.split(rows[::-1], [1, 40, 41]):
        parts = parts.add(part)
    exact = rows.astype(np.float64)
    for statistics in (whole, parts):
        np.testing.assert_allclose(statistics.mean, exact.mean(0), rtol=1e-12)
        np.testing.assert_allclose(statistics.covariance, np.cov(exact.T), rtol=1e-10, atol=1e-12)

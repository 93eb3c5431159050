"""Distances against other packages' figures, scipy and closed forms.

`tests/golden/make_distance_goldens.py` makes the figures of torch-fidelity and ADM's evaluator.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial
import scipy.special

from shortcut_tpu.evaluation import manifold
from shortcut_tpu.evaluation.distances import (
    ClassSums,
    Gaussian,
    GaussianStatistics,
    frechet_distance,
    inception_score,
)
from shortcut_tpu.evaluation.manifold import precision_recall
from shortcut_tpu.evaluation.sums import Sums
from tests.golden.seeded_features import logits, reference, samples

ROOT = Path(__file__).parents[2]


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
    mean_a, mean_b = np.array([1.0, -2.0, 0.5]), np.zeros(3)
    std_a, std_b = np.array([1.0, 2.0, 0.5]), np.array([0.5, 2.0, 1.5])

    def exact(mean, std):
        return Gaussian(mean, np.diag(std**2))

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


@pytest.mark.parametrize(("mean", "std"), [(1e6, 0.01), (-1e4, 1e-3), (0.0, 1.0), (1e8, 10.0)])
def test_a_small_spread_about_a_large_mean_is_kept(mean, std):
    """Against centred rows, of which numpy takes the moments in two passes."""
    rng = np.random.default_rng(0)
    a, b = (mean + std * rng.normal(size=(300, 6)) for _ in range(2))
    expected = frechet_distance(
        *(Gaussian((rows - mean).mean(0), np.cov((rows - mean).T)) for rows in (a, b))
    )
    assert expected > 0
    # Splits, and a way through a file and back, change roundings only.
    parts = GaussianStatistics.empty(6)
    for part in np.split(a, [0, 1, 100]):
        parts = parts.add(part)
        stored = Sums.from_bytes(Sums({"pool": parts}, None).to_bytes())
        parts = stored.gaussians["pool"]
    for found in (statistics_of(a), parts):
        assert frechet_distance(found, statistics_of(b)) == pytest.approx(expected, rel=1e-5)


def test_the_batches_of_other_chip_counts_give_the_same_moments():
    """The shift is the first row, so that exact sums of integers are equal to the last bit."""
    rows = np.random.default_rng(0).integers(-99, 99, (64, 4)).astype(np.float32)
    whole = statistics_of(rows)
    parts = GaussianStatistics.empty(4)
    for part in np.split(rows, 8):
        parts = parts.add(part)
    for name in ("count", "shift", "total", "outer"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))


@pytest.mark.parametrize("package", ["torch-fidelity", "adm"])
def test_distances_are_those_of_other_packages(package):
    golden = json.loads((ROOT / "tests/golden/distances.json").read_text())[package]
    real, fake = reference(), samples()
    scores = ClassSums.empty(len(fake), 20, split=len(fake) // 4).add(logits(), 0)
    precision, recall = precision_recall(real, fake)
    found = {
        "frechet": frechet_distance(statistics_of(fake), statistics_of(real)),
        "inception_score": inception_score(scores),
        "precision": precision,
        "recall": recall,
    }
    assert found == pytest.approx({name: golden[name] for name in found}, rel=1e-5)
    # Half precision, which ADM's evaluator uses where it can, is not far off.
    if package == "adm":
        assert precision == pytest.approx(golden["precision_half"], rel=0.05)


def test_moments_from_a_file_measure_as_sums_do():
    a, b = statistics_of(samples()), statistics_of(reference())
    known = Gaussian(b.mean, b.covariance)
    assert frechet_distance(a, known) == frechet_distance(a, b)


def test_inception_score_is_its_formula_whatever_the_batches():
    """exp(E KL(p(y|x) || p(y))) a split of 300, 300 and 100 samples, some very sure."""
    rows = np.concatenate([logits()[:699], np.full((1, 20), -1e4, np.float32)])
    rows[699, 3] = 0
    p = scipy.special.softmax(rows.astype(np.float64), 1)
    expected = np.mean(
        [
            np.exp(scipy.special.rel_entr(part, part.mean(0)).sum(1).mean())
            for part in (p[:300], p[300:600], p[600:])
        ]
    )
    for batch in (700, 299, 64):
        sums = ClassSums.empty(700, 20, split=300)
        for start in range(0, 700, batch):
            sums = sums.add(rows[start : start + batch], start)
        assert sums.counts.tolist() == [300, 300, 100]
        assert inception_score(sums) == pytest.approx(expected, rel=1e-9)
    # All alike score 1, each sure of a class of its own scores the number of classes.
    assert inception_score(ClassSums.empty(8, 20).add(np.zeros((8, 20)), 0)) == pytest.approx(1)
    assert inception_score(ClassSums.empty(20, 20).add(100 * np.eye(20), 0)) == pytest.approx(20)


def test_precision_and_recall_are_the_balls_of_the_third_neighbours(monkeypatch):
    """By scipy's trees in float64, with blocks smaller than the sets."""
    monkeypatch.setattr(manifold, "_BLOCK", 64)
    real, fake = reference().astype(np.float64), samples().astype(np.float64)

    def share_inside(rows, centres):
        radii = scipy.spatial.KDTree(centres).query(centres, 4)[0][:, 3]
        return (scipy.spatial.distance.cdist(rows, centres) <= radii).any(1).mean()

    expected = share_inside(fake, real), share_inside(real, fake)
    assert precision_recall(reference(), samples()) == pytest.approx(expected, rel=1e-9)
    # Far from the origin too, where squares are large beside distances.
    shifted = precision_recall(reference() + np.float32(300), samples() + np.float32(300))
    assert shifted == pytest.approx(expected, rel=0.01)
    assert precision_recall(reference(), reference()) == (1, 1)
    assert precision_recall(reference(), reference() + np.float32(1e3)) == (0, 0)

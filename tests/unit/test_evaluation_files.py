"""Statistics, samples and sums on disk: what was written comes back, what is damaged is named."""

import dataclasses

import numpy as np
import pytest

from data_pipeline.errors import UserError
from shortcut_tpu.evaluation.distances import GaussianStatistics, frechet_distance
from shortcut_tpu.evaluation.evaluator import open_reference
from shortcut_tpu.evaluation.features import LOGITS, POOL, SPATIAL, Features
from shortcut_tpu.evaluation.images import ImageProgram, as_reference, one_mesh, sample_sums
from shortcut_tpu.evaluation.protocols import get_protocol
from shortcut_tpu.evaluation.reference import Reference, load_reference, save_reference
from shortcut_tpu.evaluation.sample_files import SampleReader, SampleWriter
from shortcut_tpu.evaluation.sums import Sums, distances
from shortcut_tpu.evaluation.unfinished import Unfinished
from shortcut_tpu.reference_stats import from_npz

PIXELS = Features(get_protocol("fd_pixel"), {})
IMAGES = np.random.default_rng(0).integers(0, 256, (50, 2, 3, 1), np.uint8)
UNIT = IMAGES.astype(np.float64).reshape(50, 6) / 127.5 - 1


@pytest.fixture
def inception_sums():
    """Sums as of an Inception, of few numbers."""
    outputs = {POOL: UNIT, SPATIAL: UNIT[:, :4], LOGITS: 5 * UNIT[:, :3]}
    features = dataclasses.replace(PIXELS)
    object.__setattr__(features, "sizes", lambda shape: {k: v.shape[1] for k, v in outputs.items()})
    empty = Sums.empty(features, (2, 3, 1), 50, every=3)
    sums = empty
    for start in range(0, 50, 7):
        sums = sums.add({k: v[start : start + 7].astype(np.float32) for k, v in outputs.items()})
    return sums


def test_sums_come_back_and_go_on(inception_sums, tmp_path):
    again = Sums.from_bytes(inception_sums.to_bytes())
    reference = Reference(GaussianStatistics.empty(6).add(UNIT[::-1] * 2), vectors=UNIT[:20])
    protocol = get_protocol("adm")
    found = distances(again, reference, protocol)
    assert found == distances(inception_sums, reference, protocol)
    # No spatial moments, no sFID.
    assert list(found) == ["fid", "inception_score", "precision", "recall"]
    np.testing.assert_allclose(again.kept_vectors(), UNIT[::3], atol=1e-6)
    unfinished = Unfinished(tmp_path, {"seed": 0})
    assert unfinished.load("4") is None
    unfinished.save("4", inception_sums)
    assert unfinished.load("4").to_bytes() == inception_sums.to_bytes()
    assert Unfinished(tmp_path, {"seed": 1}).load("4") is None
    (path,) = tmp_path.rglob("4.npz")
    path.write_bytes(path.read_bytes()[:-100])
    assert unfinished.load("4") is None
    unfinished.remove()
    assert not list(tmp_path.rglob("*.npz"))


def test_samples_that_are_not_finite_have_no_distance():
    sums = Sums.empty(PIXELS, (2, 3, 1), 2).add({POOL: np.full((2, 6), np.nan)})
    reference = Reference(GaussianStatistics.empty(6).add(UNIT))
    assert np.isnan(distances(sums, reference, PIXELS.protocol)["fd_pixel"])


def test_samples_are_what_numpy_reads(tmp_path):
    """A file as ADM's evaluator takes it, written in two goes and read in batches."""
    path = tmp_path / "samples.npz"
    writer = SampleWriter(path, IMAGES.shape, "key")
    writer.put(0, IMAGES[:30])
    writer.flush()
    assert writer.new and not path.exists()
    again = SampleWriter(path, IMAGES.shape, "key")
    assert not again.new
    again.put(30, IMAGES[30:])
    again.finish()
    assert [p.name for p in tmp_path.iterdir()] == ["samples.npz"]
    np.testing.assert_array_equal(np.load(path)["arr_0"], IMAGES)
    with SampleReader(path) as samples:
        np.testing.assert_array_equal(np.concatenate(list(samples.batches(16))), IMAGES)
    sums = sample_sums(path, PIXELS, one_mesh(), batch_size=16)
    np.testing.assert_allclose(sums.gaussians[POOL].mean, UNIT.mean(0), atol=1e-6)
    np.testing.assert_allclose(sums.gaussians[POOL].covariance, np.cov(UNIT.T), atol=1e-6)


def test_files_of_samples_that_are_none_are_named(tmp_path):
    path = tmp_path / "s.npz"
    for arrays, message in (
        ({"images": IMAGES}, "holds no array `arr_0`"),
        ({"arr_0": UNIT}, "arr_0 is float64"),
        ({"arr_0": IMAGES[0]}, "it needs uint8"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(UserError, match=f"s.npz: .*{message}"):
            SampleReader(path)
    path.write_bytes(b"PK")
    with pytest.raises(UserError, match="s.npz: not a readable npz"):
        SampleReader(path)


def test_references_come_back(tmp_path):
    path = tmp_path / "stats.npz"
    np.savez(path, arr_0=IMAGES)
    reference = from_npz(str(path), PIXELS, one_mesh())
    assert (reference.images, reference.vectors) == (50, None)
    save_reference(tmp_path / "ours.npz", reference, PIXELS)
    again = load_reference(tmp_path / "ours.npz", PIXELS, 6)
    assert (again.digest, again.images, again.source) == (reference.digest, 50, "stats.npz")
    assert frechet_distance(again.pool, reference.pool) == pytest.approx(0, abs=1e-7)
    other = Features(get_protocol("fd_efficientnet"), {})
    with pytest.raises(UserError, match="made for protocol fd_pixel, not fd_efficientnet"):
        load_reference(tmp_path / "ours.npz", other, 6)


def test_statistics_of_others_are_read_with_their_images(tmp_path):
    """ADM's file: moments of all images, and some images for precision and recall."""
    path = tmp_path / "VIRTUAL.npz"
    covariance = np.cov(UNIT.T)
    np.savez(path, mu=UNIT.mean(0), sigma=covariance, mu_s=[1.0], sigma_s=[[2.0]], arr_0=IMAGES)
    protocol = dataclasses.replace(get_protocol("fd_pixel"), distances=("fd_pixel", "precision"))
    features = Features(protocol, {})
    reference = open_reference(str(path), features, (2, 3, 1), one_mesh())
    np.testing.assert_array_equal(reference.pool.covariance, covariance)
    assert reference.spatial.covariance.tolist() == [[2.0]]
    np.testing.assert_allclose(reference.vectors, UNIT, atol=1e-6)
    # The official code's has no more than two.
    np.savez(path, mu=UNIT.mean(0), sigma=covariance)
    plain = open_reference(str(path), features, (2, 3, 1), one_mesh())
    assert (plain.spatial, plain.vectors, plain.images) == (None, None, None)
    for arrays, message in (
        ({"mu": UNIT.mean(0)}, "holds no `mu` and `sigma`"),
        ({"mu": [1.0], "sigma": [[1.0]]}, r"mu is float64 \(1,\), it needs finite floats \(6,\)"),
        ({"mu": UNIT.mean(0), "sigma": covariance * np.nan}, "sigma .* needs finite"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(UserError, match=f"VIRTUAL.npz: {message}"):
            load_reference(path, features, 6)


def test_sets_smaller_than_the_mesh_count_once():
    program, sums = ImageProgram(PIXELS, one_mesh()), Sums.empty(PIXELS, (2, 3, 1), 5)
    found = as_reference(program.gather([IMAGES[:3], IMAGES[3:5]], sums), "")
    assert found.images == 5
    np.testing.assert_allclose(found.pool.mean, UNIT[:5].mean(0), atol=1e-6)

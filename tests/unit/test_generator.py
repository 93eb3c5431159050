"""Samples that depend on the seed and their number, and on nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.autoencoders import load_autoencoder
from data_pipeline.errors import UserError
from data_pipeline.records import LatentReader
from shortcut_tpu.evaluation.distances import GaussianStatistics, frechet_distance
from shortcut_tpu.evaluation.evaluator import make_evaluator
from shortcut_tpu.evaluation.generator import make_generator, sample_noise, unit_to_uint8
from shortcut_tpu.evaluation.labels import balanced_labels, make_labels
from shortcut_tpu.evaluation.unfinished import Unfinished
from shortcut_tpu.training.experiment import Experiment

IDENTITY = load_autoencoder("identity")


def test_noise_of_a_sample_does_not_depend_on_its_company():
    together = sample_noise(3, jnp.arange(100, dtype=jnp.uint32), (2, 2, 1))
    alone = sample_noise(3, jnp.array([42], jnp.uint32), (2, 2, 1))
    np.testing.assert_array_equal(alone[0], together[42])
    assert not np.array_equal(alone[0], sample_noise(4, jnp.array([42], jnp.uint32), (2, 2, 1))[0])
    assert float(together.mean()) == pytest.approx(0, abs=0.15)
    assert float(together.std()) == pytest.approx(1, abs=0.1)


def test_images_are_the_same_on_any_mesh_and_in_any_batch(tiny_config, devices):
    labels = balanced_labels(10, 10)
    found = []
    for mesh_devices in (devices[:1], devices):
        experiment = Experiment.from_config(tiny_config, mesh_devices)
        params = jax.tree.map(lambda leaf: leaf + 0.05, experiment.init_state().params)
        generator = make_generator(experiment, IDENTITY)
        images = generator(params, range(10), labels, 2)
        part = generator(params, [7], [labels[7]], 2)
        np.testing.assert_allclose(part[0], images[7], rtol=1e-4, atol=1e-5)
        found.append(images)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-5)
    assert np.abs(found[0] - np.asarray(sample_noise(0, jnp.arange(10), (8, 8, 1)))).max() > 0.1


def test_labels_are_balanced():
    assert np.bincount(balanced_labels(2000, 10)).tolist() == [200] * 10
    assert set(np.bincount(balanced_labels(25, 10)).tolist()) == {2, 3}


def test_labels_are_functions_of_the_seed_and_the_index(digits_path):
    def make(balance, count, seed=0):
        return make_labels(balance, count, num_classes=10, seed=seed, records=str(digits_path))

    for balance in ("random", "data"):
        many = make(balance, 1797)
        np.testing.assert_array_equal(make(balance, 50), many[:50])
        assert not np.array_equal(make(balance, 50, seed=1), many[:50])
    # Each about as often as any other: a tenth of 1797, give or take five standard deviations.
    assert np.abs(np.bincount(make("random", 1797)) - 179.7).max() < 5 * np.sqrt(179.7)
    stored = LatentReader(digits_path).read(np.arange(1797))["label"]
    np.testing.assert_array_equal(np.bincount(make("data", 1797)), np.bincount(stored))
    with pytest.raises(UserError, match="class balance 'fair' is none of balanced, random, data"):
        make("fair", 10)


def test_distance_counts_every_sample_once_and_survives_a_kill(tiny_config, devices, tmp_path):
    """70 samples in batches of 40 over 8 devices: the last batch is filled up and cut.

    The reference is all 1797 digits as vectors in [-1, 1].
    """
    experiment = Experiment.from_config(tiny_config, devices)
    generator = make_generator(experiment, IDENTITY)

    def evaluator_of(**more):
        return make_evaluator(generator, IDENTITY, protocol="fd_pixel", num_samples=70, **more)

    evaluator = evaluator_of()
    pixels = LatentReader(tiny_config.data.path).read(np.arange(1797))["mean"]
    assert (pixels.min(), pixels.max()) == (-1, 1)
    reference = GaussianStatistics.empty(64).add(pixels.reshape(1797, 64))
    # A fresh network is zero: its samples are its noise, clipped to [-1, 1].
    noise = np.clip(np.asarray(sample_noise(0, jnp.arange(70), (8, 8, 1))), -1, 1)
    expected = frechet_distance(GaussianStatistics.empty(64).add(noise.reshape(70, 64)), reference)
    params, steps = experiment.init_state().params, []
    assert evaluator.distance(params, 2, steps.append) == pytest.approx(expected, rel=1e-6)
    assert steps == [0, 80, 60]
    assert evaluator.reference.images == 1797

    def killed(more):
        if more:
            raise KeyboardInterrupt

    def unfinished(facts):
        return Unfinished(tmp_path, facts, every_seconds=0)

    with pytest.raises(KeyboardInterrupt):
        evaluator_of(unfinished=unfinished).distance(params, 2, killed)
    again, resumed = evaluator_of(unfinished=unfinished), []
    assert again.distance(params, 2, resumed.append) == evaluator.distance(params, 2)
    # The 40 samples of before the kill are not made again, and then none is.
    assert resumed == [80, 60]
    assert again.distance(params, 2, resumed.append) == evaluator.distance(params, 2)
    assert resumed[2:] == [140]


def test_what_cannot_be_measured_is_refused(tiny_config, devices):
    generator = make_generator(Experiment.from_config(tiny_config, devices), IDENTITY)
    for protocol, num_samples, message in (
        (
            "fid",
            10,
            "protocol 'fid' is none of adm, official, jax-fid, fd_dinov2, fd_efficient",
        ),
        ("fd_pixel", 1, "num_samples=1"),
        ("adm", 10, "protocol adm needs Inception's weights: --features=inception:FILE"),
    ):
        with pytest.raises(UserError, match=message):
            make_evaluator(generator, IDENTITY, protocol=protocol, num_samples=num_samples)


def test_pixels_round_to_the_nearest_byte():
    images = np.array([-2.0, -1.0, 0.0, 1 / 255, 1.0, 3.0])
    assert unit_to_uint8(images).tolist() == [0, 0, 128, 128, 255, 255]

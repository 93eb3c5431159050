"""Samples that depend on the seed and their number, and on nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.autoencoders import load_autoencoder
from data_pipeline.errors import UserError
from data_pipeline.records import LatentReader
from shortcut_tpu.evaluation.distances import GaussianStatistics, frechet_distance
from shortcut_tpu.evaluation.evaluator import Evaluator, make_evaluator, reference_statistics
from shortcut_tpu.evaluation.features import PixelFeatures, make_features
from shortcut_tpu.evaluation.generator import (
    balanced_labels,
    make_generator,
    sample_noise,
    unit_to_uint8,
)
from shortcut_tpu.experiment import Experiment

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


def test_reference_is_all_records_in_pixels(digits_path):
    """1797 digits as vectors in [-1, 1]: numpy's mean and covariance."""
    found = reference_statistics(digits_path, IDENTITY, PixelFeatures())
    pixels = LatentReader(digits_path).read(np.arange(1797))["mean"].astype(np.float64)
    pixels = pixels.reshape(1797, 64)
    assert found.count == 1797
    assert (pixels.min(), pixels.max()) == (-1, 1)
    np.testing.assert_allclose(found.mean, pixels.mean(0), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(pixels.T), rtol=1e-9, atol=1e-12)


def test_distance_counts_every_sample_once_and_clips(tiny_config, devices):
    """70 samples in batches of 40 over 8 devices: the last batch is filled up and cut."""
    experiment = Experiment.from_config(tiny_config, devices)
    generator = make_generator(experiment, IDENTITY)
    params = experiment.init_state().params
    features = PixelFeatures()
    reference = reference_statistics(tiny_config.data.path, IDENTITY, features)
    evaluator = Evaluator(generator, features, reference, num_samples=70, batch_size=40)
    # A fresh network is zero: its samples are its noise, clipped to [-1, 1].
    noise = np.clip(np.asarray(sample_noise(0, jnp.arange(70), (8, 8, 1))), -1, 1)
    expected = frechet_distance(GaussianStatistics.empty(64).add(noise.reshape(70, 64)), reference)
    steps = []
    assert evaluator.distance(params, 2, steps.append) == pytest.approx(expected, rel=1e-6)
    assert steps == [80, 60]


def test_what_cannot_be_measured_is_refused(tiny_config, devices):
    with pytest.raises(UserError, match="protocol 'fid' is none of fd_pixel"):
        make_features("fid")
    generator = make_generator(Experiment.from_config(tiny_config, devices), IDENTITY)
    with pytest.raises(UserError, match="num_samples=1"):
        make_evaluator(generator, IDENTITY, protocol="fd_pixel", num_samples=1)


def test_pixels_round_to_the_nearest_byte():
    images = np.array([-2.0, -1.0, 0.0, 1 / 255, 1.0, 3.0])
    assert unit_to_uint8(images).tolist() == [0, 0, 128, 128, 255, 255]

"""Sheets: which labels, from which noises, in which order."""

import dataclasses
import io

import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from data_pipeline.autoencoders import load_autoencoder
from data_pipeline.errors import UserError
from data_pipeline.manifest import Manifest
from shortcut_tpu.cli.labels import label_names, parse_labels
from shortcut_tpu.evaluation.generator import make_generator, sample_noise
from shortcut_tpu.evaluation.interpolation import InterpolatingGenerator
from shortcut_tpu.sample import png
from shortcut_tpu.training.experiment import Experiment

CLASSES = ("goldfish, Carassius auratus", "crane", "crane, wading bird", "sea lion")


@pytest.fixture
def data(digits_path, tmp_path):
    """A config's `data` beside a manifest of four classes."""
    path = tmp_path
    dataclasses.replace(Manifest.load(digits_path), class_names=CLASSES).save(path)
    return {"num_classes": 4, "path": str(path)}


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        (None, [0, 1, 2, 3]),
        ("3,0", [3, 0]),
        ("null,2", [4, 2]),
        ("Goldfish, sea lion", [0, 3]),
        ("carassius auratus", [0]),
        # A whole name goes before a part of another's.
        ("crane", [1]),
        ("wading bird", [2]),
    ],
)
def test_labels_by_number_and_by_name(data, text, labels):
    assert parse_labels(text, data) == labels


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4", "'4' is not a label in 0 .. 3"),
        ("", "'' is not a label"),
        ("-1", "'-1' is not a label"),
        ("goldfisch", "the nearest class is 'goldfish'"),
    ],
)
def test_labels_that_are_none(data, text, message):
    with pytest.raises(UserError, match=message):
        parse_labels(text, data)


@pytest.mark.parametrize(
    ("names", "text", "labels"),
    [
        ([str(n) for n in range(12)], "2,10", [2, 10]),
        (["2", "10"], "2,10", [0, 1]),
        (["2", "10"], "label:1,class:2", [1, 0]),
        (["1", "2", "3"], "class:3,3,label:0", [2, 2, 0]),
        (["1", "2", "3"], "1", None),
    ],
)
def test_numbers_of_numbered_classes(tmp_path, digits_path, names, text, labels):
    """A number that is one class's label and another's name is asked about."""
    dataclasses.replace(Manifest.load(digits_path), class_names=names).save(tmp_path)
    data = {"num_classes": len(names), "path": str(tmp_path)}
    if labels is None:
        with pytest.raises(UserError, match="'1' may be any of 0, 1; give label:0 or class:NAME"):
            parse_labels(text, data)
    else:
        assert parse_labels(text, data) == labels


def test_names_need_the_records():
    with pytest.raises(UserError, match="cannot be read .*give numbers"):
        parse_labels("goldfish", {"num_classes": 4, "path": "nowhere"})


def test_interpolation_keeps_the_variance(tiny_config, devices):
    """x_0 = sqrt(1 - i^2) e_{2r} + i e_{2r+1}, i = 0, 1/3, 2/3, 1."""
    experiment = Experiment.from_config(tiny_config, devices[:1])
    generator = InterpolatingGenerator(experiment, load_autoencoder("identity"), seed=3, points=4)
    found = generator.noise(jnp.arange(8, dtype=jnp.uint32))
    ends = np.asarray(sample_noise(3, jnp.arange(4, dtype=jnp.uint32), (8, 8, 1)), np.float64)
    for index in range(8):
        way, i = index // 4, (index % 4) / 3
        expected = np.sqrt(1 - i**2) * ends[2 * way] + i * ends[2 * way + 1]
        np.testing.assert_allclose(found[index], expected, atol=1e-6)


def test_a_way_begins_at_a_sample(tiny_config, devices):
    experiment = Experiment.from_config(tiny_config, devices[:1])
    identity = load_autoencoder("identity")
    params = experiment.init_state().params
    way = InterpolatingGenerator(experiment, identity, seed=tiny_config.seed, points=3)
    images = make_generator(experiment, identity)(params, [0, 1], [5, 5], 2)
    np.testing.assert_allclose(way(params, [0, 2], [5, 5], 2), images, atol=1e-6)


def test_a_labels_rows_of_all_step_counts_come_together():
    """Two step counts, three labels, two columns: grey 100 n + label in each tile, names before."""
    images = np.zeros((2, 6, 50, 50, 1), np.uint8)
    for n in range(2):
        for index in range(6):
            images[n, index] = 100 * n + index // 2
    content = png(images, names=["goldfish", "tench", "no label"], steps=(1, 4))
    page = np.asarray(Image.open(io.BytesIO(content)))
    assert page.shape[0] == 6 * 52 + 2
    assert [page[row * 52 + 20, -20, 0] for row in range(6)] == [0, 100, 1, 101, 2, 102]
    assert all((page[row * 52 : row * 52 + 52, : -2 * 52] < 100).any() for row in range(6))
    with pytest.raises(UserError, match="4 channels are no pictures"):
        png(np.zeros((1, 1, 8, 8, 4), np.uint8), names=["tench"], steps=(1,))


def test_labels_have_names(data):
    named = label_names([0, 1, 4], data)
    assert named == ["goldfish", "crane", "no label"]
    assert label_names([3, 4], {"num_classes": 4, "path": "nowhere"}) == ["class 3", "no label"]

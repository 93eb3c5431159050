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
from data_pipeline.records import LatentReader
from shortcut_tpu.cli.labels import label_names, parse_labels
from shortcut_tpu.evaluation.generator import make_generator, sample_noise
from shortcut_tpu.evaluation.interpolation import InterpolatingGenerator
from shortcut_tpu.evaluation.real_images import real_latents
from shortcut_tpu.evaluation.sample_sheets import sheet_labels
from shortcut_tpu.observability.summary import Score
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


def test_stored_latents_are_decoded_as_samples_are(tiny_config, devices):
    """Scaled as the model sees them, and back: pixels come out as they went in."""
    experiment = Experiment.from_config(tiny_config, devices[:2], latent_scale=0.25)
    generator = make_generator(experiment, load_autoencoder("identity"))
    latents = np.random.default_rng(0).normal(size=(5, 8, 8, 1)).astype(np.float32)
    np.testing.assert_allclose(generator.decoded(latents, rows=2), latents, rtol=1e-6)


def test_a_labels_rows_of_all_step_counts_come_together():
    """Two step counts, three labels, two columns: grey 100 n + label in each tile, names before."""
    images = np.zeros((2, 6, 64, 64, 1), np.uint8)
    for n in range(2):
        for index in range(6):
            images[n, index] = 100 * n + index // 2
    names = ["goldfish", "tench", "no label"]
    page = np.asarray(Image.open(io.BytesIO(png(images, names, steps=(1, 4)))))
    tops = [36 + 66 * row for row in range(6)]
    assert page.shape[0] == tops[-1] + 66
    assert [page[top + 20, -20, 0] for top in tops] == [0, 100, 1, 101, 2, 102]
    assert all((page[top : top + 64, : -2 * 66] < 100).any() for top in tops)
    # Real images are a block of their own, and the distances a picture beside it.
    real = np.arange(6, dtype=np.uint8).reshape(3, 2, 1, 1, 1, 1) * np.ones((64, 64, 1), np.uint8)
    page = np.asarray(Image.open(io.BytesIO(png(images, names, steps=(1, 4), real=real))))
    assert [page[top + 20, -20, 0] for top in tops] == [0, 1, 2, 3, 4, 5]
    score = Score("fd_pixel", 20, 100, {1: 2.0, 4: 1.0})
    both = png(images, names, steps=(1, 4), real=real, score=score)
    assert Image.open(io.BytesIO(both)).width == page.shape[1] + 480
    with pytest.raises(UserError, match="4 channels are no pictures"):
        png(np.zeros((1, 1, 8, 8, 4), np.uint8), names=["tench"], steps=(1,))


def test_real_images_are_the_records_of_their_labels(digits_path, tiny_config):
    """Label by label, decoded as the samples are; none from records of another shape."""
    data = tiny_config.data
    labels = [7, 2, data.num_classes]
    found = real_latents(digits_path, data, labels, 3).reshape(3, 3, 8, 8, 1)
    records = LatentReader(digits_path).read(range(1797))
    for label, latents in zip(labels, found, strict=True):
        pool = records["mean"][(records["label"] == label) | (label == data.num_classes)]
        assert all((pool == latent).all(axis=(1, 2, 3)).any() for latent in latents)
    other = data.copy_and_resolve_references()
    other.image_size = 4
    assert real_latents(digits_path, other, labels, 3) is None
    assert real_latents("nowhere", data, labels, 3) is None


@pytest.mark.parametrize(("classes", "rows"), [(1, 4), (3, 3), (10, 10), (1000, 10)])
def test_a_sheet_has_a_label_a_row(classes, rows):
    labels, columns = sheet_labels(classes)
    by_row = labels.reshape(rows, columns)
    assert labels.size in range(30, 41)
    assert (by_row == by_row[:, :1]).all() and by_row[:, 0].tolist() == sorted(by_row[:, 0])
    assert set(labels) == set(range(min(classes, 10)))


def test_labels_have_names(data):
    named = label_names([0, 1, 4], data)
    assert named == ["goldfish", "crane", "no label"]
    assert label_names([3, 4], {"num_classes": 4, "path": "nowhere"}) == ["class 3", "no label"]

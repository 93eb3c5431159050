"""Draws from stored posteriors, and their scale."""

from collections.abc import Sequence
import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest

from data_pipeline.autoencoders import load_autoencoder
from data_pipeline.errors import UserError
from data_pipeline.records import Field, LatentReader, Manifest, write_shard
from shortcut_tpu.cli import config as config_lib
from shortcut_tpu.conversion import imf
from shortcut_tpu.evaluation.generator import make_generator
from shortcut_tpu.training.experiment import Experiment
from shortcut_tpu.training.latents import Scaling, sample_latents, with_statistics

IDENTITY = load_autoencoder("identity")
KEY = jax.random.key(0)
MEAN = jnp.arange(4096 * 4, dtype=jnp.float16).reshape(4096, 2, 2, 1) / 4096


def test_deterministic_latents_are_only_scaled():
    found = sample_latents({"mean": MEAN}, KEY, Scaling(scale=(0.5,)))
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, MEAN.astype(jnp.float32) * 0.5)


def test_samples_have_the_posteriors_moments():
    """z = (mean + std e) scale with e ~ N(0, 1)."""
    std = jnp.full_like(MEAN, 0.25)
    z = sample_latents({"mean": MEAN, "std": std}, KEY, Scaling(scale=(2.0,)))
    e = (z / 2 - MEAN.astype(jnp.float32)) / 0.25
    assert abs(float(e.mean())) < 0.03
    assert abs(float(e.std()) - 1) < 0.03


def test_half_of_the_rows_are_mirrored_each_with_its_own_std():
    batch = {
        "mean": MEAN,
        "mean_flipped": MEAN + 100,
        "std": jnp.zeros_like(MEAN),
        "std_flipped": jnp.ones_like(MEAN),
    }
    z = sample_latents(batch, KEY, Scaling())
    flipped = z[:, 0, 0, 0] > 50
    assert 0.45 < float(flipped.mean()) < 0.55
    np.testing.assert_array_equal(z[~flipped], MEAN[~flipped].astype(jnp.float32))
    assert 0.9 < float((z - 100 - MEAN)[flipped].std()) < 1.1


def write_records(folder: Path, sizes: Sequence[int]) -> np.ndarray:
    """Folders of the same records in shards of these sizes; channels differ in mean and spread."""
    rng = np.random.default_rng(0)
    names = ("mean", "std", "mean_flipped", "std_flipped")
    fields = (*(Field(name, "float16", (2, 2, 3)) for name in names), Field("label", "int32", ()))
    autoencoder = {"name": "test", "digest": "0", "scale": 0.5, "deterministic": False}
    autoencoder |= {"latent_shape": [2, 2, 3], "image_shape": [2, 2, 3]}
    empty = Manifest(fields, (), autoencoder, {"source": "test"}, ("a",), sum(sizes))
    records = np.zeros(sum(sizes), empty.record_dtype)
    for name in names:
        values = rng.normal((3, -1, 0), (1, 2, 0.1), (len(records), 2, 2, 3))
        records[name] = values if "mean" in name else np.abs(values) / 4
    folder.mkdir()
    ends = np.cumsum(sizes)
    shards = [
        write_shard(folder / f"{end}.array_record", records[end - size : end])
        for size, end in zip(sizes, ends, strict=True)
    ]
    dataclasses.replace(empty, shards=tuple(shards)).save(folder)
    return records


def config_of(folder: Path) -> ConfigDict:
    config = config_lib.load("imagenet256_b", "improved_meanflow").copy_and_resolve_references()
    with config.unlocked():
        config.data.update(path=str(folder), image_size=2, channels=3)
    return config


def test_channels_are_standardized_by_the_manifest(tmp_path):
    """(z - mu_c) / sigma_c, z = mean + std e over images and mirrored ones, and back.

    mu_c = E[mean], sigma_c^2 = E[mean^2 + std^2] - mu_c^2; shards do not show.
    """
    records = write_records(tmp_path / "one", [700])
    write_records(tmp_path / "more", [300, 1, 399])
    both = [np.concatenate([records[k], records[f"{k}_flipped"]]) for k in ("mean", "std")]
    mean, std = (np.asarray(a, np.float64).reshape(-1, 3) for a in both)
    expected = mean.mean(0), np.sqrt((mean**2 + std**2).mean(0) - mean.mean(0) ** 2)
    for folder in ("one", "more"):
        found = Manifest.load(tmp_path / folder).channel_statistics
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    config = with_statistics(config_of(tmp_path / "more"))
    scaling = Scaling.of(config.data, 0.5)
    batch = {name: jnp.asarray(records[name]) for name in records.dtype.names}
    z = sample_latents(batch, KEY, scaling)
    # Of 2,800 values a channel.
    assert float(jnp.abs(z.mean((0, 1, 2))).max()) < 0.08
    assert float(jnp.abs(z.std((0, 1, 2)) - 1).max()) < 0.06
    stored = sample_latents(batch, KEY, Scaling())
    np.testing.assert_allclose(scaling.stored(z), stored, rtol=0, atol=2e-6)


def test_records_without_statistics_are_refused_where_they_are_needed(tmp_path):
    write_records(tmp_path / "old", [5])
    path = tmp_path / "old" / "manifest.json"
    content = json.loads(path.read_text())
    del content["shards"][0]["moments"]
    path.write_text(json.dumps(content))
    config = config_of(tmp_path / "old")
    with pytest.raises(UserError, match="manifest has no statistics by channel.*encode the images"):
        with_statistics(config)
    with config.unlocked():
        config.data.update(latent_mean=(0.0, 1.0, 2.0), latent_std=(1.0, 2.0, 3.0))
    assert with_statistics(config) is config
    assert Scaling.of(config.data, 0.5) == Scaling((0.0, 1.0, 2.0), (1.0, 1 / 2, 1 / 3))
    with config.unlocked():
        config.data.update(standardize=False)
    assert Scaling.of(config.data, 0.5) == Scaling((0.0,), (0.5,))


@pytest.mark.parametrize("moments", [[[1.0, 2.0, 3.0]], [[1.0], [2.0]], [["a"] * 3] * 2, 5])
def test_moments_of_another_shape_are_refused(tmp_path, moments):
    write_records(tmp_path / "bad", [5])
    path = tmp_path / "bad" / "manifest.json"
    content = json.loads(path.read_text())
    content["shards"][0]["moments"] = moments
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="manifest.json: not a valid manifest"):
        Manifest.load(tmp_path / "bad")


def test_samples_are_decoded_at_the_records_scale(tiny_config, devices):
    """An image is sigma x + mu; the digits' own statistics stand in the config of a run."""
    config = tiny_config.copy_and_resolve_references()
    with config.unlocked():
        config.data.standardize = True
    config = with_statistics(config)
    pixels = LatentReader(config.data.path).read(np.arange(1797))["mean"].astype(np.float64)
    assert config.data.latent_mean == pytest.approx([pixels.mean()], rel=1e-12)
    assert config.data.latent_std == pytest.approx([pixels.std()], rel=1e-12)
    generator = make_generator(Experiment.from_config(config, devices[:1]), IDENTITY)
    seen = (pixels[:8] - pixels.mean()) / pixels.std()
    np.testing.assert_allclose(generator.decoding({}, jnp.asarray(seen)), pixels[:8], atol=1e-6)
    np.testing.assert_allclose(generator.decoded(pixels[:6], rows=8), pixels[:6], atol=1e-6)


def test_imf_s_weights_bring_the_statistics_of_their_latents():
    """(latents - mean) / std by channel, as its official code has them for sd-vae-ft-mse."""
    config = config_lib.load("imagenet256_imf_b").copy_and_resolve_references()
    with config.unlocked():
        imf.configure_imf(config)
    scaling = Scaling.of(with_statistics(config).data, 0.18215)
    assert scaling.shift == (0.86488, -0.27787343, 0.21616915, 0.3738409)
    assert 1 / np.array(scaling.scale) == pytest.approx(
        [4.85503674, 5.31922414, 3.93725398, 3.9870003]
    )

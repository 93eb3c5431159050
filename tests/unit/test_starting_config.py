"""The config that encode_latents writes: it is of the records, its estimate of its network."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline import starting_config
from data_pipeline.autoencoders import load_autoencoder
from data_pipeline.decoding import all_grey
from data_pipeline.encode_latents import encode
from data_pipeline.images import Preprocessing
from data_pipeline.records import LatentReader
from data_pipeline.sources import open_source
from shortcut_tpu.cli import config as config_lib
from shortcut_tpu.cli import schema
from shortcut_tpu.training.flops import count_flops
from shortcut_tpu.training.parts import make_parts
from tests.unit.image_files import png


@pytest.fixture
def grey(tmp_path):
    """Forty pictures of two classes, grey, of which none says so in its file."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 28, 28, 1), np.uint8)
    for index, picture in enumerate(pixels):
        folder = tmp_path / "pictures" / ("cat", "dog")[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index:02}.png").write_bytes(png(picture.repeat(3, axis=-1)))
    return tmp_path / "pictures"


def test_grey_pictures_are_records_of_one_channel(grey, tmp_path):
    source, preprocessing = open_source(f"imagefolder:{grey}"), Preprocessing("adm", 28)
    assert all_grey(source, preprocessing, workers=0)
    one = dataclasses.replace(preprocessing, channels=1)
    identity = load_autoencoder("identity")
    manifest, _ = encode(source, identity, tmp_path / "a", preprocessing=one)
    assert manifest.latent_shape == (28, 28, 1)
    encode(source, identity, tmp_path / "b", preprocessing=preprocessing)
    found, three = (LatentReader(tmp_path / name).read(range(40))["mean"] for name in "ab")
    np.testing.assert_array_equal(found.repeat(3, axis=-1), three)
    # One in colour, the last, and they all are.
    (grey / "dog" / "99.png").write_bytes(png(np.array([[[1, 2, 3]]], np.uint8)))
    assert not all_grey(open_source(f"imagefolder:{grey}"), preprocessing, workers=0)


@pytest.mark.parametrize("kind", ["grey", "digits", "latents"])
def test_a_written_config_is_one_of_its_records(kind, grey, digits_path, tmp_path, monkeypatch):
    """It passes every check, and its estimate counts its own network's products."""
    path, autoencoder = digits_path, "identity"
    if kind == "grey":
        path = tmp_path / "records"
        images = Preprocessing("adm", 28, channels=1)
        source = open_source(f"imagefolder:{grey}")
        encode(source, load_autoencoder("identity"), path, preprocessing=images)
    manifest = LatentReader(path).manifest
    if kind == "latents":
        autoencoder = "taef2:weights/it's"
        encoder = {"name": "taef2", "latent_shape": [8, 8, 32], "image_shape": [64, 64, 3]}
        manifest = dataclasses.replace(manifest, autoencoder=manifest.autoencoder | encoder)
    monkeypatch.setattr(starting_config, "_products_per_second", lambda rows, width: 1e10)
    plan = starting_config.plan_for(manifest)
    file = tmp_path / "photos.py"
    starting_config.write(file, plan, manifest, "data/photos", autoencoder)
    config = config_lib.load(str(file))
    schema.check(config)
    said = config.data.to_dict() | {"autoencoder": config.data.autoencoder.partition(":")[0]}
    assert manifest.data_keys.items() <= said.items()
    assert config.train.num_steps == plan.num_steps
    assert f"{plan.num_steps} steps" in file.read_text()

    parts = make_parts(config)
    model = parts.network(parts.network_config)
    params = jax.eval_shape(model.init, jax.random.key(0))
    rows = 3
    arguments = (jnp.zeros((rows, *manifest.latent_shape)), jnp.ones(rows), jnp.ones(rows))
    flops = count_flops(model.apply, params, *arguments, jnp.zeros(rows, jnp.int32)) / rows
    tokens = (config.data.image_size // plan.patch_size) ** 2
    values = plan.patch_size**2 * config.data.channels
    told = starting_config.forward_flops(tokens, plan.width, plan.depth, values)
    assert told == flops
    assert plan.step_seconds == pytest.approx(5 * 64 * 4 * told / (1e10 * jax.device_count()))


def test_steps_are_rounded_and_bounded():
    assert [starting_config._round(n) for n in (7, 432, 1234, 98765)] == [7, 430, 1200, 99000]
    assert [starting_config._patch(side, 4, 64) for side in (8, 28, 29, 32, 64)] == [4, 4, 29, 4, 8]

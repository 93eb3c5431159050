"""Records that are not what the config says, and the overrides that the error holds."""

import dataclasses
import re

import pytest

from data_pipeline.errors import UserError
from data_pipeline.manifest import Manifest
from shortcut_tpu.cli import config as config_lib
from shortcut_tpu.training.input import check_data


@pytest.mark.parametrize(
    ("said", "mended"),
    [
        ({"image_size": 16}, {"image_size": "8"}),
        ({"num_classes": 1, "channels": 4}, {"channels": "1", "num_classes": "10"}),
        ({"autoencoder": "taef2:weights/taef2"}, {"autoencoder": "identity"}),
    ],
)
def test_the_error_holds_what_mends_it(digits_path, said, mended):
    manifest = Manifest.load(digits_path)
    config = config_lib.load("digits")
    check_data(config, "records", manifest)
    config.data.update(said)
    with pytest.raises(UserError, match="^records: the records are not of this config") as error:
        check_data(config, "records", manifest)
    assert dict(re.findall(r"--config\.data\.(\w+)=(\S+)", str(error.value))) == mended


def test_weights_do_not_count(digits_path):
    """The same autoencoder may lie elsewhere on another machine; its digest is compared later."""
    manifest = Manifest.load(digits_path)
    kl = dataclasses.replace(manifest, autoencoder=manifest.autoencoder | {"name": "kl"})
    config = config_lib.load("digits")
    config.data.autoencoder = "kl:gs://bucket/weights"
    check_data(config, "records", kl)


def test_networks_take_square_latents(digits_path):
    manifest = Manifest.load(digits_path)
    shape = {"latent_shape": [8, 6, 1]}
    oblong = dataclasses.replace(manifest, autoencoder=manifest.autoencoder | shape)
    with pytest.raises(UserError, match=r"shape \(8, 6, 1\), not square"):
        check_data(config_lib.load("digits"), "records", oblong)

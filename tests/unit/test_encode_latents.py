"""Encoding gives the same bytes however often it is broken, and refuses to mix data sets."""

import json
import os
from pathlib import Path
import subprocess
import sys

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

import data_pipeline
from data_pipeline import resumable
from data_pipeline.autoencoders import load_autoencoder
from data_pipeline.encode_latents import encode
from data_pipeline.errors import UserError
from data_pipeline.records import LatentReader, verify
from data_pipeline.sources import open_source

ROOT = Path(data_pipeline.__file__).parent.parent
IDENTITY = load_autoencoder("identity")


class Halving:
    """A pure autoencoder with a std: latents of 2x2 means, for what identity does not show."""

    name = "halving"
    digest = "abc"
    scale = 2.0
    deterministic = False

    def latent_shape(self, image_shape):
        height, width, channels = image_shape
        return (height // 2, width // 2, channels)

    def encode(self, images):
        n, h, w, c = images.shape
        blocks = images.reshape(n, h // 2, 2, w // 2, 2, c)
        return blocks.mean((2, 4)), blocks.std((2, 4))

    def decode(self, latents):
        return latents.repeat(2, 1).repeat(2, 2)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "data_pipeline.encode_latents", *arguments]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def npz(tmp_path):
    """An archive of 600 random images of 4x6x3 bytes."""
    rng = np.random.default_rng(0)
    path = tmp_path / "images.npz"
    images = rng.integers(0, 256, (600, 4, 6, 3), dtype=np.uint8)
    np.savez(path, images=images, labels=rng.integers(0, 5, 600))
    return path


def test_digits_arrive_to_the_bit(tmp_path):
    manifest, encoded = encode(open_source("digits"), IDENTITY, tmp_path, shard_records=500)
    assert encoded == manifest.num_records == 1797
    assert [shard.num_records for shard in manifest.shards] == [500, 500, 500, 297]
    assert manifest.shards[3].file == "shard-00003-of-00004.array_record"
    assert manifest.class_names == tuple("0123456789")
    assert verify(tmp_path) == manifest
    batch = LatentReader(tmp_path).read(np.arange(1797))
    digits = load_digits()
    assert list(batch) == ["mean", "label"]
    assert np.array_equal(batch["mean"][..., 0] * 8 + 8, digits.images)
    assert np.array_equal(batch["label"], digits.target)
    assert sorted(contents(tmp_path)) == sorted(
        ["manifest.json", *(shard.file for shard in manifest.shards)]
    )


def test_std_and_flips(tmp_path, npz):
    source, autoencoder = open_source(f"npz:{npz}"), Halving()
    manifest, _ = encode(source, autoencoder, tmp_path / "out", shard_records=400, flips=True)
    assert manifest.latent_shape == (2, 3, 3)
    batch = LatentReader(tmp_path / "out").read(np.arange(600))
    images, labels = source.read(0, 600)
    expected = {"label": labels}
    for suffix, mirrored in (("", images), ("_flipped", images[:, :, ::-1])):
        expected["mean" + suffix], expected["std" + suffix] = autoencoder.encode(mirrored)
    assert set(batch) == set(expected)
    for name, values in batch.items():
        np.testing.assert_allclose(values, expected[name], atol=1e-3, err_msg=name)


@pytest.mark.parametrize("count", [1, 3])
def test_any_number_of_devices_makes_the_same_folder(tmp_path, monkeypatch, count):
    digits = open_source("digits")
    encode(digits, Halving(), tmp_path / "all", flips=True)
    some = jax.local_devices()[:count]
    assert len(jax.local_devices()) > len(some) == count
    monkeypatch.setattr(jax, "local_devices", lambda: some)
    encode(digits, Halving(), tmp_path / "some", flips=True)
    assert contents(tmp_path / "all") == contents(tmp_path / "some")


def test_two_runs_give_the_same_bytes_and_a_third_does_nothing(tmp_path):
    for folder in ("a", "b"):
        encode(open_source("digits"), IDENTITY, tmp_path / folder, shard_records=1000)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    manifest, encoded = encode(open_source("digits"), IDENTITY, tmp_path / "a", shard_records=7)
    assert encoded == 0
    assert len(manifest.shards) == 2


@pytest.mark.parametrize("broken_at", [0, 1, 3])
def test_broken_and_started_again_gives_the_same_bytes(tmp_path, npz, monkeypatch, broken_at):
    source = open_source(f"npz:{npz}")
    encode(source, IDENTITY, tmp_path / "unbroken", shard_records=150)
    written = []

    def write_or_break(path, records, temporary):
        if len(written) == broken_at:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt
        written.append(path.name)
        return real_write(path, records, temporary)

    real_write = resumable.write_shard
    with monkeypatch.context() as patch:
        patch.setattr(resumable, "write_shard", write_or_break)
        with pytest.raises(KeyboardInterrupt):
            encode(source, IDENTITY, tmp_path / "broken", shard_records=150)
    assert len(written) == broken_at
    _, encoded = encode(source, IDENTITY, tmp_path / "broken", shard_records=150)
    assert encoded == 600 - 150 * broken_at
    assert contents(tmp_path / "broken") == contents(tmp_path / "unbroken")


def test_damaged_and_missing_shards_are_encoded_anew(tmp_path):
    source = open_source("digits")
    encode(source, IDENTITY, tmp_path, shard_records=400)
    before = contents(tmp_path)
    shards = sorted(tmp_path.glob("shard-*"))
    shards[1].unlink()
    shards[3].write_bytes(shards[3].read_bytes()[:-5])
    _, encoded = encode(source, IDENTITY, tmp_path)
    assert encoded == 800
    assert contents(tmp_path) == before


def test_a_folder_made_before_shards_could_be_short(tmp_path):
    """Its manifest does not say how many images a shard stands for: as many as it has records."""
    encode(open_source("digits"), IDENTITY, tmp_path, shard_records=400)
    before = contents(tmp_path)
    manifest = json.loads(before["manifest.json"])
    for key in ("shard_records", "rejected"):
        del manifest["preprocessing"][key]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    _, encoded = encode(open_source("digits"), IDENTITY, tmp_path)
    assert encoded == 0
    sorted(tmp_path.glob("shard-*"))[4].unlink()
    _, encoded = encode(open_source("digits"), IDENTITY, tmp_path)
    assert encoded == 197
    assert contents(tmp_path) == before


def test_records_of_something_else_are_left_alone(tmp_path, npz):
    digits = open_source("digits")
    encode(digits, IDENTITY, tmp_path)
    before = contents(tmp_path)
    others = [
        (digits, IDENTITY, True, "flips is false there and true now"),
        (digits, Halving(), False, "name is .identity. there and .halving. now"),
        (open_source(f"npz:{npz}"), IDENTITY, False, "source is .digits. there and .npz:images"),
    ]
    for source, autoencoder, flips, message in others:
        with pytest.raises(UserError, match=message):
            encode(source, autoencoder, tmp_path, flips=flips)
    del before[npz.name]
    after = contents(tmp_path)
    del after[npz.name]
    assert after == before


def test_unfinished_records_of_something_else_are_left_alone(tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(resumable, "write_shard", fail)
        with pytest.raises(KeyboardInterrupt):
            encode(open_source("digits"), IDENTITY, tmp_path, shard_records=400)
    with pytest.raises(UserError, match="shard_records is 400 there and 300 now"):
        encode(open_source("digits"), IDENTITY, tmp_path, shard_records=300)


def test_latents_that_are_not_finite_are_refused(tmp_path):
    class Broken(Halving):
        def encode(self, images):
            mean, std = super().encode(images)
            return mean * 1e30, std

    with pytest.raises(UserError, match="mean of an image from number 0 to 255 is not a finite"):
        encode(open_source("digits"), Broken(), tmp_path)
    assert not list(tmp_path.glob("shard-*"))


def test_command(tmp_path):
    arguments = ("--source=digits", "--autoencoder=identity", f"--output={tmp_path}")
    done = run(*arguments)
    assert done.returncode == 0
    first, classes, training = done.stdout.splitlines()
    names = ", ".join(f"{number} = {number}" for number in range(10))
    assert classes == f"10 class(es) in this order: {names}"
    assert first == f"{tmp_path}: encoded 1797 of 1797 records in 1 shard(s)"
    assert training == (
        "to train on them: python -m shortcut_tpu.train --config=CONFIG --workdir=RUN"
        f" --config.data.path={tmp_path} --config.data.autoencoder=identity"
        " --config.data.image_size=8 --config.data.channels=1 --config.data.num_classes=10"
    )
    assert "1797/1797 images" in done.stderr and "images/s" in done.stderr
    again = run(*arguments)
    assert again.returncode == 0
    assert again.stderr == ""
    assert again.stdout.splitlines() == [
        f"{tmp_path}: already complete, 1797 records in 1 shard(s)",
        classes,
        training,
    ]
    wrong = run("--source=movies:/x", f"--output={tmp_path}")
    assert wrong.returncode == 1
    assert wrong.stderr == (
        "error: unknown source kind 'movies'; the known ones are digits, npz, imagefolder,"
        " webdataset, parquet, arrayrecord\n"
    )
    assert "--source=digits --autoencoder=identity --output=DIR" in run("--help").stdout


def test_output_that_cannot_be_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        encode(open_source("digits"), IDENTITY, tmp_path / "file")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((3, 2, 2, 1), np.uint8)}, "labels"),
        ({"images": np.zeros((3, 2, 2), np.uint8), "labels": np.zeros(3, int)}, r"\[N, H, W, C\]"),
        ({"images": np.zeros((3, 2, 2, 1), int), "labels": np.zeros(3, int)}, "int64.*uint8"),
        ({"images": np.full((3, 2, 2, 1), 1.5), "labels": np.zeros(3, int)}, r"\[-1, 1\]"),
        ({"images": np.full((3, 2, 2, 1), np.nan), "labels": np.zeros(3, int)}, r"\[-1, 1\]"),
        ({"images": np.zeros((3, 2, 2, 1)), "labels": np.zeros(2, int)}, "3 integers"),
        ({"images": np.zeros((3, 2, 2, 1)), "labels": np.zeros(3)}, "3 integers"),
        ({"images": np.zeros((3, 2, 2, 1)), "labels": np.full(3, -1)}, "int32"),
        ({"images": np.array([None]), "labels": np.zeros(1, int)}, "not a readable npz"),
        ({"images": np.full((3, 2, 2, 1), 0.5), "labels": np.zeros(3, int)}, "lie in .0, 1."),
        ({"images": np.zeros((3, 3, 8, 8)), "labels": np.zeros(3, int)}, "channels first"),
    ],
)
def test_bad_npz_is_named(tmp_path, arrays, message):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(UserError, match=f"bad.npz: .*{message}"):
        open_source(f"npz:{tmp_path / 'bad.npz'}")


@pytest.mark.parametrize("content", [None, b"", b"text", b"PK\x03\x04broken"])
def test_unreadable_npz_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(UserError, match="bad.npz"):
        open_source(f"npz:{tmp_path / 'bad.npz'}")
    np.save(tmp_path / "bad.npy", np.zeros(3))
    with pytest.raises(UserError, match="bad.npy"):
        open_source(f"npz:{tmp_path / 'bad.npy'}")


def test_npz_floats_and_bytes(tmp_path):
    labels = np.array([0, 2, 1], np.uint8)
    floats = np.linspace(-1, 1, 12, dtype=np.float64).reshape(3, 2, 2, 1)
    np.savez(tmp_path / "floats.npz", images=floats, labels=labels)
    np.savez(
        tmp_path / "bytes.npz",
        images=np.array([0, 255, 51], np.uint8).reshape(3, 1, 1, 1),
        labels=labels,
    )
    source = open_source(f"npz:{tmp_path / 'floats.npz'}")
    images, read_labels = source.read(1, 3)
    assert (images.dtype, read_labels.dtype) == (np.float32, np.int32)
    assert np.array_equal(images, floats[1:].astype(np.float32))
    assert read_labels.tolist() == [2, 1]
    assert source.class_names == ("0", "1", "2")
    byte_source = open_source(f"npz:{tmp_path / 'bytes.npz'}")
    np.testing.assert_allclose(byte_source.read(0, 3)[0].ravel(), [-1, 1, -0.6], atol=1e-6)
    assert byte_source.digest != source.digest


@pytest.mark.parametrize(
    ("opener", "spec", "message"),
    [
        (open_source, "npz", "needs a path"),
        (open_source, "digits:x", "takes no path"),
        (open_source, "", "unknown source kind ''; the known ones are digits, npz, image"),
        (load_autoencoder, "vae", "unknown autoencoder 'vae'; the known ones are identity"),
        (load_autoencoder, "identity:x", "takes no weights"),
    ],
)
def test_specs_that_name_nothing(opener, spec, message):
    with pytest.raises(UserError, match=message):
        opener(spec)


def test_manifest_states_the_autoencoder(tmp_path):
    manifest, _ = encode(open_source("digits"), IDENTITY, tmp_path)
    raw = json.loads((tmp_path / "manifest.json").read_text())
    assert raw["format_version"] == manifest.format_version == 1
    assert raw["autoencoder"] == {
        "name": "identity",
        "digest": "identity",
        "scale": 1.0,
        "deterministic": True,
        "latent_shape": [8, 8, 1],
        "image_shape": [8, 8, 1],
    }

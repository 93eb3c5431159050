"""Files by someone who wishes us ill: each is read or named, nothing is lost, nothing crashes."""

import io
import json
from pathlib import Path
import struct
import zlib

import numpy as np
from PIL import Image
import pytest

from data_pipeline.autoencoders import load_autoencoder
from data_pipeline.encode_latents import encode
from data_pipeline.errors import UserError
from data_pipeline.images import Preprocessing
from data_pipeline.records import LatentReader
from data_pipeline.sources import open_source
from tests.unit.image_files import (
    pictures,
    write_array_records,
    write_parquet,
    write_tars,
)

IDENTITY = load_autoencoder("identity")
TINY = Preprocessing("adm", 8)
NUM_IMAGES = 300
NUM_ARCHIVES = 100


def whole_files(rng: np.random.Generator) -> list[tuple[str, bytes]]:
    """A picture in every form and mode that might be met."""
    pixels = rng.integers(0, 256, (20, 24, 4), np.uint8)
    rgba = Image.fromarray(pixels)
    modes = {mode: rgba.convert("RGB").convert(mode) for mode in ("RGB", "L", "P", "1", "CMYK")}
    modes |= {"RGBA": rgba, "LA": rgba.convert("LA"), "YCbCr": rgba.convert("YCbCr")}
    modes["I;16"] = Image.fromarray(pixels[..., 0].astype(np.uint16) * 200)
    forms = {
        "JPEG": ("RGB", "L", "CMYK", "YCbCr"),
        "PNG": ("RGB", "L", "P", "1", "RGBA", "LA", "I;16"),
        "WEBP": ("RGB", "RGBA"),
        "GIF": ("P", "L"),
        "BMP": ("RGB", "1"),
        "TIFF": ("RGB", "CMYK", "I;16"),
    }
    files = []
    for form, names in forms.items():
        for mode in names:
            buffer = io.BytesIO()
            modes[mode].save(buffer, form)
            files.append((f"{form}-{mode}".replace(";", ""), buffer.getvalue()))
    return files


def png_of_any_size(width: int, height: int) -> bytes:
    """A PNG whose header, checksum and all, claims a size that nothing stands behind."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        length, checksum = len(content), zlib.crc32(kind + content)
        return struct.pack(">I", length) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + data + chunk(b"IEND", b"")


def hostile_images(rng: np.random.Generator) -> tuple[dict[str, bytes], set[str], set[str]]:
    """Files by name; those that are whole, and those that nobody could read."""
    whole = whole_files(rng)
    files = {f"whole-{name}": data for name, data in whole}
    good = set(files)
    hopeless = {
        "empty": b"",
        "zeros": bytes(5000),
        "text": b"not an image\n" * 9,
        "html": b"<!DOCTYPE html><title>404</title>",
        "no-end": whole[0][1][: len(whole[0][1]) // 2],
        "header-only": whole[4][1][:33],
        "bomb": png_of_any_size(2**31 - 1, 2**31 - 1),
        "strip": png_of_any_size(2**28, 1),
        "no-pixels": png_of_any_size(0, 7),
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "noise": rng.bytes(3000),
    }
    files |= hopeless
    while len(files) < NUM_IMAGES:
        name, data = whole[len(files) % len(whole)]
        damaged = damage(bytearray(data), rng)
        files[f"{len(files):03d}-{name}"] = damaged
    return files, good, set(hopeless)


def damage(data: bytearray, rng: np.random.Generator) -> bytes:
    """One of the ways in which files go wrong."""
    where = int(rng.integers(len(data)))
    match int(rng.integers(6)):
        case 0:
            del data[where:]
        case 1:
            data[where] ^= int(rng.integers(1, 256))
        case 2:
            data[where : where + 16] = rng.bytes(16)
        case 3:
            del data[where : where + int(rng.integers(1, 64))]
        case 4:
            data[where:where] = rng.bytes(int(rng.integers(1, 64)))
        case 5:
            for place in rng.integers(min(64, len(data)), size=3):
                data[place] = int(rng.integers(256))
    return bytes(data)


def test_hostile_images(tmp_path):
    files, good, hopeless = hostile_images(np.random.default_rng(0))
    assert len(files) == NUM_IMAGES
    folder = tmp_path / "images" / "all"
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    source = open_source(f"imagefolder:{folder.parent}")
    output = tmp_path / "out"

    def attempt(max_rejected):
        return encode(
            source, IDENTITY, output, preprocessing=TINY, workers=2, max_rejected=max_rejected
        )

    with pytest.raises(UserError, match=r"image\(s\) rejected so far, the first all/.*rejected.js"):
        attempt(len(hopeless))
    manifest, _ = attempt(NUM_IMAGES)
    lines = [json.loads(line) for line in (output / "rejected.jsonl").read_text().splitlines()]
    assert manifest.preprocessing["rejected"] == len(lines)
    assert manifest.num_records + len(lines) == NUM_IMAGES
    assert len(LatentReader(output).read(range(manifest.num_records))["mean"])
    names = sorted(files)
    rejected = {names[line["index"]]: line for line in lines}
    assert len(rejected) == len(lines)
    for name, line in rejected.items():
        assert line["name"] == f"all/{name}"
        assert line["reason"] and "\n" not in line["reason"]
    assert hopeless <= set(rejected)
    assert not good & set(rejected)
    assert len(rejected) > 100


def whole_archives(folder: Path) -> dict[str, bytes]:
    """An archive of each kind, of the same twelve pictures."""
    folder.mkdir()
    images = pictures()
    write_tars(folder / "tar", images, shards=1)
    write_parquet(folder / "parquet", images, files=1)
    write_array_records(folder / "arrays", images, files=1)
    arrays = np.zeros((12, 8, 8, 3), np.uint8)
    np.savez(folder / "npz.npz", images=arrays, labels=np.arange(12) % 3)
    return {
        "webdataset": next((folder / "tar").iterdir()).read_bytes(),
        "parquet": next((folder / "parquet").iterdir()).read_bytes(),
        "arrayrecord": next((folder / "arrays").glob("set*")).read_bytes(),
        "npz": (folder / "npz.npz").read_bytes(),
    }


def test_hostile_archives(tmp_path):
    """Of twelve pictures all come out or are listed, or else the archive is named."""
    rng = np.random.default_rng(1)
    whole = whole_archives(tmp_path / "whole")
    refused: dict[str, list[str]] = {kind: [] for kind in whole}
    for number in range(NUM_ARCHIVES):
        kind = list(whole)[number % len(whole)]
        data = bytearray(whole[kind])
        if number % 3 == 0:
            del data[int(rng.integers(len(data))) :]
        else:
            data = bytearray(damage(data, rng))
        path = tmp_path / f"archive-{number:03d}.bin"
        path.write_bytes(data)
        line = ""
        try:
            source = open_source(f"{kind}:{path}")
            output = tmp_path / f"out-{number:03d}"
            manifest, _ = encode(source, IDENTITY, output, preprocessing=TINY, max_rejected=12)
            assert manifest.num_records + manifest.preprocessing["rejected"] == 12, path
        except UserError as error:
            line = str(error)
        if line:
            assert f"{number:03d}" in line and "\n" not in line
            refused[kind].append(line)
    assert all(refused.values())

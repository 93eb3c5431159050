"""Folders of PNG files: the same samples as anywhere else, each once, however often it stops."""

import json
from pathlib import Path

from etils import epath
import numpy as np
from PIL import Image
import pytest

from data_pipeline.autoencoders import load_autoencoder
from data_pipeline.errors import UserError
from shortcut_tpu.evaluation.generator import make_generator
from shortcut_tpu.evaluation.labels import make_labels
from shortcut_tpu.evaluation.sample_folders import SampleFolder
from shortcut_tpu.training.experiment import Experiment

FACTS = {"seed": 0, "step": 20}


def pictures(folder):
    paths = sorted(folder.glob("*.png"))
    assert [path.name for path in paths] == [f"{i:07d}.png" for i in range(len(paths))]
    return np.stack([np.asarray(Image.open(path)) for path in paths])


def test_a_folder_holds_the_samples_by_their_index(tiny_config, devices, tmp_path, monkeypatch):
    """PNG i is floor(127.5 x_i + 128) of sample i, in batches of any size, on two devices."""
    experiment = Experiment.from_config(tiny_config, devices[:2])
    generator = make_generator(experiment, load_autoencoder("identity"))
    params = experiment.init_state().params
    labels = make_labels("balanced", 23, num_classes=10, seed=0)
    folder = SampleFolder(epath.Path(tmp_path / "samples"), FACTS)
    seen = []

    def write(num):
        folder.write(
            generator, params, labels[:num], num_steps=2, batch_size=6, progress=seen.append
        )

    write(13)
    expected = generator(params, np.arange(23), labels, 2)[..., 0]
    expected = np.floor(np.clip(expected * 127.5 + 128, 0, 255))
    found = pictures(tmp_path / "samples").astype(int)
    # Programs of other batches may round a float32 otherwise.
    assert found.shape == (13, 8, 8) and np.abs(found - expected[:13]).max() <= 1
    assert sum(seen) == 13

    # Killed while it wrote, and called again for more: what is there stays as it is.
    (tmp_path / "samples" / "0000004.png").unlink()
    (tmp_path / "samples" / ".0000004.png.tmp").write_bytes(b"half a")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "samples").glob("*.png")}
    seen.clear()
    write(23)
    assert seen[0] == 12 and sum(seen) == 23
    found = pictures(tmp_path / "samples").astype(int)
    assert len(found) == 23 and np.abs(found - expected).max() <= 1
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())

    # The first of three hosts writes every third of each batch.
    folder = SampleFolder(epath.Path(tmp_path / "shared"), FACTS)
    monkeypatch.setattr(folder, "_missing", np.arange)
    monkeypatch.setattr("jax.process_count", lambda: 3)
    write(8)
    names = [path.name for path in sorted((tmp_path / "shared").glob("*.png"))]
    assert names == [f"{index:07d}.png" for index in (0, 3, 6)]


def test_a_folder_of_other_samples_is_refused(tmp_path):
    SampleFolder(epath.Path(tmp_path / "a"), FACTS)
    assert json.loads((tmp_path / "a" / "samples.json").read_text()) == FACTS
    SampleFolder(epath.Path(tmp_path / "a"), FACTS)
    with pytest.raises(UserError, match=r"made otherwise \(ema, step\)"):
        SampleFolder(epath.Path(tmp_path / "a"), {"seed": 0, "step": 40, "ema": "target"})
    Path(tmp_path / "someones.png").touch()
    with pytest.raises(UserError, match=r"holds PNG files, and no samples\.json"):
        SampleFolder(epath.Path(tmp_path), FACTS)

"""Weights & Biases beside TensorBoard, offline: what is logged lies in the workdir."""

import os

from etils import epath
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.errors import UserError
from shortcut_tpu.observability import wandb_writer
from shortcut_tpu.observability.writers import make_writer


def test_without_the_package_a_line_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(UserError, match=r"train\.wandb=mine: wandb is not installed; pip install"):
        wandb_writer.WandbWriter(epath.Path(tmp_path), "mine")


def test_both_writers_get_all_and_a_workdir_is_one_run(tiny_config, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    config = tiny_config.copy_and_resolve_references()
    with config.unlocked():
        config.train.wandb = "mine"
    for step in (4, 2):  # The second start goes on from an earlier step.
        writer = make_writer(epath.Path(tmp_path), config, {"w": jnp.zeros(3)}, ["fd_pixel"])
        writer.write_scalars(step, {"train/loss": 0.5})
        writer.write_images(step, {"samples/1_steps": np.zeros((1, 5, 7, 3), np.uint8)})
        writer.flush()
        writer.close()
    assert list(tmp_path.glob("events.out.tfevents.*"))
    files = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"), key=os.path.getmtime)
    # A run's number ends its file's name, and records are stored as they are.
    assert len(files) == 2 and len({file.name for file in files}) == 1
    for step, file in zip((4, 2), files, strict=True):
        content = file.read_bytes()
        for said in (b"train/loss", b"0.5", b"step", b"%d" % step, b"samples/1_steps"):
            assert said in content
    assert len(list((tmp_path / "wandb").rglob("*.png"))) == 2

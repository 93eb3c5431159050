"""Killed with -9 and started again, a run ends where the unbroken one ends, to the bit."""

import json
import os
import signal
import subprocess
import sys
import time

from etils import epath
import jax
import numpy as np

from shortcut_tpu.cli import config as config_lib
from shortcut_tpu.observability import goodput
from shortcut_tpu.observability.clock import STEP
from shortcut_tpu.runs.checkpointing import Checkpoints
from shortcut_tpu.training.experiment import Experiment
from tests.multihost import pods

OVERRIDES = (
    "--config.batch_size=32",
    "--config.model.width=16",
    "--config.model.depth=2",
    "--config.model.num_heads=2",
    "--config.model.unroll=1",
    "--config.train.num_steps=200",
    "--config.optimizer.warmup_steps=100",
    "--config.train.log_every_steps=20",
    "--config.checkpoint.every_steps=40",
    "--config.evaluation.every_steps=0",
)


def start(workdir, digits_path):
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "shortcut_tpu.train",
            "--config=digits",
            f"--config.data.path={digits_path}",
            f"--workdir={workdir}",
            *OVERRIDES,
        ],
        env=pods.environment(workdir.parent / "cache", devices=2),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def final_state(workdir):
    experiment = Experiment.from_config(config_lib.restore(workdir), jax.devices()[:1])
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        assert checkpoints.newest() == 200
        return checkpoints.restore(experiment.abstract_state)


def last_line(text):
    return next(line for line in reversed(text.splitlines()) if line.startswith("step 200/200"))


def test_killed_and_resumed_run_is_bit_identical(digits_path, tmp_path):
    unbroken = start(tmp_path / "unbroken", digits_path)
    output, errors = unbroken.communicate(timeout=300)
    assert unbroken.returncode == 0, errors

    broken = start(tmp_path / "broken", digits_path)
    saved = tmp_path / "broken" / "checkpoints"
    deadline = time.monotonic() + 300
    # With its checksums a checkpoint is whole.
    while not any((tmp_path / "broken" / "checksums").glob("*.json")):
        assert broken.poll() is None, broken.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(broken.pid, signal.SIGKILL)
    broken.communicate()
    assert not (saved / "200").exists(), "the kill came too late to test anything"

    resumed = start(tmp_path / "broken", digits_path)
    resumed_output, errors = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, errors
    assert "resumed from step" in resumed_output

    expected, found = final_state(tmp_path / "unbroken"), final_state(tmp_path / "broken")
    paths = jax.tree_util.tree_leaves_with_path(expected)
    for (path, a), b in zip(paths, jax.tree.leaves(found), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), jax.tree_util.keystr(path)
    # The console's last line holds the loss; only the timings behind it may differ.
    assert (
        last_line(output).split("ms/step")[0].rsplit(maxsplit=1)[0]
        == (last_line(resumed_output).split("ms/step")[0].rsplit(maxsplit=1)[0])
    )

    # A third start finds nothing to do, and loses nothing.
    again = start(tmp_path / "broken", digits_path)
    output, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    assert "nothing to train" in output
    assert json.loads((tmp_path / "broken" / "config.json").read_text())["batch_size"] == 32

    # The time of both starts that trained is accounted for.
    assert any(line.startswith("goodput ") for line in resumed_output.splitlines())
    killed, finished = goodput.recorded(epath.Path(tmp_path / "broken"))
    resumed_from = int(resumed_output.partition("resumed from step ")[2].split()[0])
    assert (killed.first_step, finished.first_step, finished.step) == (0, resumed_from, 200)
    assert killed.until < finished.began
    assert goodput.by_kind([killed, finished])[STEP] > 0

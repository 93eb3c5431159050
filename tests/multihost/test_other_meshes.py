"""A checkpoint goes on wherever there are chips: on another mesh, on another number of hosts."""

import json
import os
import shutil
import subprocess
import sys

from etils import epath
import numpy as np
import pytest

from shortcut_tpu.runs.workdir import claimed
from tests.multihost import pods
from tests.unit import test_checkpointing

pytestmark = pytest.mark.pods


def test_eight_devices_to_four_to_two_to_eight(tmp_path, lab):
    walk = subprocess.run(
        [sys.executable, "-m", "tests.multihost.walk_meshes", lab.data, tmp_path / "checkpoints"],
        cwd=pods.ROOT,
        env=lab.environment(devices=8),
        capture_output=True,
        text=True,
        timeout=2 * pods.DEADLINE_SECONDS,
        check=False,
    )
    assert walk.returncode == 0, walk.stderr
    found = json.loads(walk.stdout.splitlines()[-1])
    assert found["same"] == [True, True, True]
    for walked, unbroken in zip(found["walked"], found["unbroken"], strict=True):
        assert len(walked) == 20
        np.testing.assert_allclose(walked, unbroken, rtol=1e-5)


def test_what_two_hosts_began_one_host_ends_though_the_newest_checkpoints_are_damaged(
    tmp_path, lab
):
    workdir, log = tmp_path / "run", tmp_path / "log"
    shutil.copytree(lab.unbroken, workdir)
    for step, damage in ((16, test_checkpointing.flip_a_bit), (12, test_checkpointing.delete_half)):
        damage(workdir / "checkpoints", step)
    arguments = pods.train_arguments(workdir, lab.data)
    with pods.started(arguments, lab.environment(), log) as run:
        assert pods.ended(run, log) == 0, log.read_text()
    assert "1 processes" in log.read_text()
    for step in (12, 16):
        assert f"warning: checkpoint {step} is not whole: " in log.read_text()
        assert (workdir / "damaged" / str(step)).is_dir()
    assert "resumed from step 8 " in log.read_text()
    losses = pods.logged(workdir, "train/loss")
    for step, values in losses.items():
        assert max(values) - min(values) <= 1e-5 * min(values), f"step {step}: {values}"


def test_a_second_run_on_the_same_workdir_refuses(tmp_path, lab):
    log = tmp_path / "log"
    arguments = pods.train_arguments(tmp_path, lab.data)
    with claimed(epath.Path(tmp_path)), pods.started(arguments, lab.environment(), log) as run:
        assert pods.ended(run, log) == 1
    assert log.read_text().splitlines()[-1] == (
        f"error: {tmp_path}: another run is using this workdir (process {os.getpid()}); stop it, "
        "or give this one another --workdir"
    )


def test_a_changed_config_is_refused_and_then_allowed(tmp_path, lab):
    workdir, log = tmp_path / "run", tmp_path / "log"
    shutil.copytree(lab.unbroken, workdir)
    changes = ("--config.train.num_steps=17", "--config.optimizer.b1=0.8")
    arguments = pods.train_arguments(workdir, lab.data, *changes)
    with pods.started(arguments, lab.environment(), log) as run:
        assert pods.ended(run, log) == 1
    assert (
        log.read_text()
        .splitlines()[-1]
        .startswith(
            "error: the config is not that of the checkpoint: optimizer.b1: 0.9 -> 0.8. Give "
        )
    )
    arguments = pods.train_arguments(workdir, lab.data, *changes, "--allow_config_change")
    with pods.started(arguments, lab.environment(), log) as run:
        pods.until(lambda: "step 17/17" in log.read_text(), run, log)
        assert pods.ended(run, log) == 0, log.read_text()

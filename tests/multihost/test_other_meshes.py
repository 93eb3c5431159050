"""A checkpoint goes on wherever there are chips: on another mesh, on another number of hosts."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests.multihost import pods

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
    np.testing.assert_allclose(found["walked"], found["unbroken"], rtol=1e-5)


def test_what_two_hosts_began_one_host_ends(tmp_path, lab):
    workdir, log = tmp_path / "run", tmp_path / "log"
    shutil.copytree(lab.unbroken, workdir)
    for step in (12, 16):
        shutil.rmtree(workdir / "checkpoints" / str(step))
        (workdir / "checksums" / f"{step}.json").unlink()
    arguments = pods.train_arguments(workdir, lab.data)
    with pods.started(arguments, lab.environment(), log) as run:
        assert pods.ended(run, log) == 0, log.read_text()
    assert "1 processes" in log.read_text()
    assert "resumed from step 8 " in log.read_text()
    losses = pods.logged(workdir, "train/loss")
    for step, values in losses.items():
        assert max(values) - min(values) <= 1e-5 * min(values), f"step {step}: {values}"


def test_a_changed_config_is_refused_and_then_allowed(tmp_path, lab):
    workdir, log = tmp_path / "run", tmp_path / "log"
    shutil.copytree(lab.unbroken, workdir)
    change = "--config.train.num_steps=17"
    arguments = pods.train_arguments(workdir, lab.data, change)
    with pods.started(arguments, lab.environment(), log) as run:
        assert pods.ended(run, log) == 1
    assert (
        log.read_text()
        .splitlines()[-1]
        .startswith(
            "error: the config is not that of the checkpoint: train.num_steps: 16 -> 17. Give "
        )
    )
    arguments = pods.train_arguments(workdir, lab.data, change, "--allow_config_change")
    with pods.started(arguments, lab.environment(), log) as run:
        pods.until(lambda: "step 17/17" in log.read_text(), run, log)
        assert pods.ended(run, log) == 0, log.read_text()

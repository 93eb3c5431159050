"""A run that loses processes ends with the bytes of a run that lost none."""

import os
from pathlib import Path
import signal
import time

import pytest

from tests.multihost import pods

pytestmark = pytest.mark.pods


def assert_same_run(workdir: Path, unbroken: Path) -> None:
    assert pods.state_bytes(workdir) == pods.state_bytes(unbroken)
    losses, expected = pods.logged(workdir, "train/loss"), pods.logged(unbroken, "train/loss")
    assert sorted(losses) == list(range(1, 17))
    # A step that was made twice is logged twice, with the same value.
    assert losses == expected


def test_kills_at_any_moment_change_nothing(tmp_path, lab):
    """While compiling, saving, restoring, training and evaluating."""
    workdir, log = tmp_path / "run", tmp_path / "log"
    evaluated = (
        "--config.evaluation.every_steps=16",
        "--config.evaluation.num_samples=20",
        "--config.evaluation.steps=(1,)",
    )
    arguments = pods.pod_arguments(workdir, lab.data, *evaluated)
    with pods.started(arguments, lab.environment(), log) as pod:

        def until(text: str, times: int = 1) -> None:
            pods.until(lambda: log.read_text().count(text) >= times, pod, log)

        def kill(host: int) -> None:
            """Returns once all processes have been replaced."""
            hosts = pods.children(pod.pid)
            os.kill(hosts[host], signal.SIGKILL)
            pods.until(lambda: not set(hosts) & set(pods.children(pod.pid)), pod, log)

        started = "parameters, batch 32"
        # While it compiles, which is before the first step and after the first words.
        until(started)
        kill(1)
        # In a save: the folder that Orbax writes into is there.
        saving = workdir / "checkpoints"
        pods.until(lambda: any(saving.glob("8.*tmp*")) or "step  9/16" in log.read_text(), pod, log)
        kill(0)
        # As it looks for the checkpoint and restores it.
        until(started, 3)
        kill(1)
        # Between saves, or while the one before is on its way to the disk.
        until("step 14/16")
        kill(0)
        # In the evaluation that ends the run.
        until("step 16/16")
        assert not (workdir / "evaluations" / "16.json").exists()
        kill(1)
        assert pods.ended(pod, log) == 0, log.read_text()
    assert log.read_text().count("host 1 ended with signal 9") == 3
    assert log.read_text().count("host 0 ended with signal 9") == 2
    assert (workdir / "evaluations" / "16.json").exists()
    assert_same_run(workdir, lab.unbroken)


def test_sigterm_to_one_host_saves_on_all_and_the_run_goes_on(tmp_path, lab):
    # No checkpoint is due before the last step: what is saved, SIGTERM saved. JAX looks for the
    # signal once a second, in which a run of 16 steps would be over.
    longer = ("--config.train.num_steps=100", "--config.checkpoint.every_steps=100")
    unbroken = tmp_path / "unbroken"
    arguments = pods.pod_arguments(unbroken, lab.data, *longer)
    log = tmp_path / "unbroken.log"
    with pods.started(arguments, lab.environment(), log) as pod:
        assert pods.ended(pod, log) == 0, log.read_text()

    workdir, log = tmp_path / "run", tmp_path / "log"
    arguments = pods.pod_arguments(workdir, lab.data, *longer)
    with pods.started(arguments, lab.environment(), log) as pod:
        pods.until(lambda: "step   3/100" in log.read_text(), pod, log)
        os.kill(pods.children(pod.pid)[1], signal.SIGTERM)
        pods.until(lambda: "resumed from step" in log.read_text(), pod, log)
        assert pods.ended(pod, log) == 0, log.read_text()
    text = log.read_text()
    (saved,) = [line for line in text.splitlines() if line.startswith("asked to end")]
    step = int(saved.split("step ")[1].split()[0])
    assert 3 <= step < 100
    assert f"resumed from step {step} " in text
    assert "supervisor: asked to end, and saved; starting again in 0.1 s\n" in text
    assert pods.checkpoint_steps(workdir) == [step, 100]
    losses = pods.logged(workdir, "train/loss")
    assert sorted(losses) == list(range(1, 101))
    assert losses == pods.logged(unbroken, "train/loss")


def test_a_host_that_hangs_is_found_and_replaced(tmp_path, lab):
    workdir, log = tmp_path / "run", tmp_path / "log"
    arguments = pods.pod_arguments(workdir, lab.data, "--config.train.hang_seconds=20")
    with pods.started(arguments, lab.environment(), log) as pod:
        pods.until(lambda: "step  6/16" in log.read_text(), pod, log)
        hung = pods.children(pod.pid)[1]
        os.kill(hung, signal.SIGSTOP)
        stopped = time.monotonic()
        pods.until(lambda: hung not in pods.children(pod.pid), pod, log)
        assert time.monotonic() - stopped < 70
        assert pods.ended(pod, log) == 0, log.read_text()
    stacks = (workdir / "logs" / "host-0.log").read_text()
    assert "Timeout (0:00:20)!" in stacks
    assert "shortcut_tpu/train.py" in stacks
    assert_same_run(workdir, lab.unbroken)

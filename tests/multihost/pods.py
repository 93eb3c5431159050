"""Real runs on real processes, for tests that kill them; whatever is started here is ended here."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

from absl import logging
import jax
import numpy as np
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.util import tensor_util

from data_pipeline.autoencoders import load_autoencoder
from data_pipeline.encode_latents import encode
from data_pipeline.sources import open_source
from shortcut_tpu.cli import config as config_lib
from shortcut_tpu.runs.checkpointing import Checkpoints
from shortcut_tpu.training.experiment import Experiment

ROOT = Path(__file__).parents[2]
CONFIG = Path(__file__).with_name("tiny_config.py")
DEADLINE_SECONDS = 300


def environment(cache: Path, devices: int = 1) -> dict[str, str]:
    """All of the environment of a run here."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **cpu_environment(cache, devices)}


def cpu_environment(cache: Path, devices: int = 1) -> dict[str, str]:
    """The variables that a run needs; compiled programs are kept, so that a restart is quick."""
    return {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }


def make_records(folder: Path) -> None:
    encode(open_source("digits"), load_autoencoder("identity"), folder, shard_records=1000)


@contextlib.contextmanager
def started(
    arguments: list[str], env: dict[str, str], log: Path, before: Sequence[str] = ()
) -> Iterator[subprocess.Popen]:
    """Runs `[BEFORE] python ARGUMENTS` with its output in a file; kills its session at the end."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*before, sys.executable, *arguments],
            cwd=ROOT,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def until(condition: Callable[[], bool], process: subprocess.Popen, log: Path) -> None:
    """Waits for a condition while a process lives."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"too slow; {log}:\n{log.read_text()}"
        assert process.poll() is None, f"ended with {process.returncode}; {log}:\n{log.read_text()}"
        time.sleep(0.02)


def ended(process: subprocess.Popen, log: Path) -> int:
    """The status that a process ends with."""
    try:
        return process.wait(DEADLINE_SECONDS)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"too slow; {log}:\n{log.read_text()}") from None


def children(pid: int) -> list[int]:
    """The processes that a process has started, in the order of their start."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in found.split()]


def train_arguments(workdir: Path, data: Path, *more: str) -> list[str]:
    return [
        "-m",
        "shortcut_tpu.train",
        f"--config={CONFIG}",
        f"--workdir={workdir}",
        f"--config.data.path={data}",
        *more,
    ]


def pod_arguments(workdir: Path, data: Path, *more: str, hosts: int = 2) -> list[str]:
    """A supervised run of several processes; only its training."""
    return [
        "-m",
        "tests.multihost.train_pod",
        str(hosts),
        str(workdir / "logs"),
        *train_arguments(workdir, data, *more),
    ]


def state_bytes(workdir: Path, step: int | None = None) -> dict[str, bytes]:
    """Every array of a checkpoint's state, as bytes by path."""
    logging.set_verbosity(logging.FATAL)
    experiment = Experiment.from_config(config_lib.restore(workdir), jax.devices()[:1])
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        state = checkpoints.restore(experiment.abstract_state, step)
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}


def logged(workdir: Path, tag: str) -> dict[int, set[float]]:
    """Every value that TensorBoard has of a tag, by step."""
    values: dict[int, set[float]] = {}
    for path in workdir.glob("events.out.tfevents.*"):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.tag == tag:
                    number = float(tensor_util.make_ndarray(value.tensor))
                    values.setdefault(event.step, set()).add(number)
    return values


def checkpoint_steps(workdir: Path) -> list[int]:
    return sorted(int(path.stem) for path in (workdir / "checksums").glob("[0-9]*.json"))


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())

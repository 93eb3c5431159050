"""Allows one run in a workdir, and the same config each time it resumes.

Usage, on every process:
  with claimed(workdir):
    check_config(checkpoints.config(step), config, allow_change=False)
"""

from collections.abc import Iterator
import contextlib
import os
from typing import Any
import uuid

from etils import epath
from ml_collections import ConfigDict

from data_pipeline import exit_reason, locks
from data_pipeline.atomic_files import in_bucket, require_place
from data_pipeline.errors import UserError
from shortcut_tpu.cli import config as config_lib
from shortcut_tpu.cli.console import say
from shortcut_tpu.objectives import make_objective
from shortcut_tpu.pod import distributed
from shortcut_tpu.runs.lease import Lease

_LOCK = ".lock"


@contextlib.contextmanager
def claimed(workdir: epath.Path) -> Iterator[None]:
    """Holds the workdir for this run.

    On a disk the kernel lets go of it however the process ends. A bucket has no locks, nor have
    some file systems of clusters: there it is held by a lease.

    Raises:
      UserError: another run has it, or it cannot be written.
    """
    with contextlib.ExitStack() as held:
        distributed.first_does(lambda: _hold(workdir, held))
        yield


def _hold(workdir: epath.Path, held: contextlib.ExitStack) -> None:
    require_place("workdir", os.fspath(workdir), "folder")
    if not in_bucket(workdir):
        try:
            if _lock(workdir, held):
                return
        except OSError as error:
            raise UserError(f"--workdir={workdir}: {error.strerror}") from None
    held.enter_context(Lease(workdir, os.environ.get(exit_reason.RUN) or uuid.uuid4().hex))


def _lock(workdir: epath.Path, held: contextlib.ExitStack) -> bool:
    """Locks the workdir; whether there are locks there."""
    workdir.mkdir(parents=True, exist_ok=True)
    file = os.open(workdir / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    held.callback(os.close, file)
    try:
        if not locks.take(file):
            return False
    except BlockingIOError:
        holder = os.read(file, 100).decode().strip()
        raise UserError(
            f"{workdir}: another run is using this workdir (process {holder}); stop it, or give "
            "this one another --workdir"
        ) from None
    os.ftruncate(file, 0)
    os.write(file, f"{os.getpid()}\n".encode())
    return True


def check_config(before: dict[str, Any], config: ConfigDict, allow_change: bool) -> None:
    """Compares the config with that of the checkpoint it would go on from.

    More training steps are an end put off and no change, unless the objective has a schedule over
    them. A learning rate that has one is computed anew, which is said.

    Raises:
      UserError: they differ; the message names each difference.
    """
    changes = config_lib.differences(before, config)
    steps, more = before["train"]["num_steps"], config.train.num_steps
    if more > steps and not make_objective(config.objective.to_dict()).scheduled:
        changes = [change for change in changes if not change.startswith("train.num_steps: ")]
        line = f"train.num_steps: {steps} -> {more}: the same run goes on"
        if config.optimizer.schedule != "constant":
            line += f"; its {config.optimizer.schedule} learning rate is now over {more} steps"
        say(line)
    if changes and not allow_change:
        raise UserError(
            f"the config is not that of the checkpoint: {'; '.join(changes)}. Give "
            "--allow_config_change to go on with the new one, or another --workdir to start anew"
        )

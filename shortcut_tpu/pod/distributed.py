"""Finds the hosts of a run: a TPU pod, a rehearsed pod on one machine, or one process.

`launch/local_pod.sh` sets the variables; on a TPU JAX finds the pod by itself, whoever has started
the command.
"""

from collections.abc import Callable
import json
import os
import sys
from typing import TypeVar

import jax
from jax.experimental import multihost_utils
import numpy as np

from data_pipeline.errors import UserError, has_peers
from data_pipeline.hosts import NUM_PROCESSES, PROCESS_ID, join_cluster

COORDINATOR = "SHORTCUT_TPU_COORDINATOR"

T = TypeVar("T")
_LARGEST = 1 << 14
_LONGEST = 1 << 9


def initialize() -> None:
    """Joins the run's other processes; must come before anything asks JAX for devices.

    Raises:
      UserError: they cannot be joined, or another process has the chips.
    """
    # Random numbers must not depend on how an array is sharded.
    jax.config.update("jax_threefry_partitionable", True)
    if COORDINATOR in os.environ:
        _keep_output()
        jax.distributed.initialize(
            coordinator_address=os.environ[COORDINATOR],
            num_processes=int(os.environ[NUM_PROCESSES]),
            process_id=int(os.environ[PROCESS_ID]),
        )
    else:
        join_cluster()


def _keep_output() -> None:
    """Leaves standard output to Python, and what C++ libraries print there to standard error.

    Gloo, by which processors exchange arrays, greets every peer on file descriptor 1.
    """
    sys.stdout.flush()
    ours = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(ours, "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)


def end_now() -> None:
    """Ends this process, which has done its work, whatever its threads wait for."""
    if has_peers():
        jax.distributed.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def first_does(action: Callable[[], None]) -> None:
    """Runs `action` on the first process; where it raises a UserError, all raise one."""
    error: UserError | None = None
    if jax.process_index() == 0:
        try:
            action()
        except UserError as raised:
            error = raised
    failed = multihost_utils.broadcast_one_to_all(np.array(error is not None))
    if error is not None:
        raise error
    if failed:
        raise UserError("the first process stopped the run; its log says why")


def from_first(value: T) -> T:
    """The first process's value on all; of what JSON can hold, with every digit of its floats."""
    if jax.process_count() == 1:
        return value
    content = json.dumps(value).encode()
    # Broadcast arrays are of one shape everywhere, and float64 would lose half of itself.
    padded = np.zeros(_LARGEST, np.uint8)
    padded[: len(content)] = np.frombuffer(content, np.uint8)
    found: T = json.loads(bytes(multihost_utils.broadcast_one_to_all(padded)).rstrip(b"\0"))
    return found


def from_all(text: str) -> list[str]:
    """A short text of every process, by their numbers, on all."""
    if jax.process_count() == 1:
        return [text]
    padded = np.zeros(_LONGEST, np.uint8)
    content = text.encode()[:_LONGEST]
    padded[: len(content)] = np.frombuffer(content, np.uint8)
    rows = multihost_utils.process_allgather(padded)
    return [bytes(row).rstrip(b"\0").decode(errors="replace") for row in rows]

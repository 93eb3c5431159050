"""Which of several hosts this process stands for, where each works on its own share.

Usage:
    hosts = find_hosts()
    mine = numbers[hosts.index :: hosts.count]
"""

import dataclasses
import os

from data_pipeline.errors import UserError

# What launch/local_pod sets, and what marks the workers of a pod of TPU VMs.
_NUM_PROCESSES = "SHORTCUT_TPU_NUM_PROCESSES"
_PROCESS_ID = "SHORTCUT_TPU_PROCESS_ID"
_POD_MARKS = ("SHORTCUT_TPU_POD", "MEGASCALE_COORDINATOR_ADDRESS")


@dataclasses.dataclass(frozen=True)
class Hosts:
    """`index` of `count`."""

    index: int = 0
    count: int = 1


def find_hosts(index: int | None = None, count: int | None = None) -> Hosts:
    """Finds this process's place.

    Args:
        index, count: what the user says; where nothing is said, the environment tells, or on a TPU
            pod JAX does.

    Raises:
        UserError: one of the two is given without the other, or they do not fit.
    """
    if (index is None) != (count is None):
        raise UserError("--host and --hosts go together: the number of this one, and how many")
    if index is None or count is None:
        if _NUM_PROCESSES in os.environ:
            index = int(os.environ.get(_PROCESS_ID, "0"))
            count = int(os.environ[_NUM_PROCESSES])
        elif _on_tpu_pod():
            import jax  # Slow to import, and decoding workers import this module's command.

            jax.distributed.initialize()
            index, count = jax.process_index(), jax.process_count()
        else:
            index, count = 0, 1
    if not 0 <= index < count:
        raise UserError(f"host {index} is not one of {count}: hosts are numbered from 0")
    return Hosts(index, count)


def _on_tpu_pod() -> bool:
    """Whether this is one of several hosts of a TPU slice, whose chips start only together."""
    if os.environ.get("JAX_PLATFORMS", "") == "cpu":
        return False
    several = "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
    return several or any(mark in os.environ for mark in _POD_MARKS)

"""Which of several hosts this process stands for, where each works on its own share.

Usage:
    hosts = find_hosts()
    mine = numbers[hosts.index :: hosts.count]
"""

import dataclasses
import os

from data_pipeline.errors import UserError

# What launch/local_pod sets.
NUM_PROCESSES = "SHORTCUT_TPU_NUM_PROCESSES"
PROCESS_ID = "SHORTCUT_TPU_PROCESS_ID"
# The first is set by launch/tpu_pod on the workers of TPU VMs, whose environment does not tell.
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
    found = Hosts()
    if NUM_PROCESSES in os.environ:
        found = Hosts(int(os.environ.get(PROCESS_ID, "0")), int(os.environ[NUM_PROCESSES]))
    elif on_tpu_pod():
        import jax  # Slow to import, and decoding processes import what imports this.

        # The chips of a pod start only together.
        jax.distributed.initialize()
        found = Hosts(jax.process_index(), jax.process_count())
    if index is None or count is None:
        return found
    if not 0 <= index < count:
        raise UserError(f"host {index} is not one of {count}: hosts are numbered from 0")
    return Hosts(index, count)


def on_tpu_pod() -> bool:
    """Whether this is one of several hosts of a TPU slice."""
    if os.environ.get("JAX_PLATFORMS", "") == "cpu":
        return False
    several = "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
    return several or any(mark in os.environ for mark in _POD_MARKS)

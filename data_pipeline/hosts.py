"""Finds which of several hosts this process is, where each works on its own share.

Usage:
    hosts = find_hosts()
    mine = numbers[hosts.index :: hosts.count]
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import os
import sys
import threading

from data_pipeline import chips, exit_reason
from data_pipeline.errors import PassingError, UserError

# What launch/local_pod sets.
NUM_PROCESSES = "SHORTCUT_TPU_NUM_PROCESSES"
PROCESS_ID = "SHORTCUT_TPU_PROCESS_ID"
_PATIENCE_SECONDS = 20.0


@dataclasses.dataclass(frozen=True)
class Hosts:
    """`index` of `count`."""

    index: int = 0
    count: int = 1


def find_hosts(index: int | None = None, count: int | None = None) -> Hosts:
    """Finds this process's place.

    Args:
        index, count: what the user says; where nothing is said, the environment tells, or JAX does
            (`join_cluster`).

    Raises:
        UserError: one of the two is given without the other, or they do not fit; the cluster
            cannot be joined.
    """
    if (index is None) != (count is None):
        raise UserError("--host and --hosts go together: the number of this one, and how many")
    found = Hosts()
    if NUM_PROCESSES in os.environ:
        found = Hosts(int(os.environ.get(PROCESS_ID, "0")), int(os.environ[NUM_PROCESSES]))
    elif join_cluster():
        import jax  # Slow to import, and decoding processes import what imports this.

        found = Hosts(jax.process_index(), jax.process_count())
    if index is None or count is None:
        return found
    if not 0 <= index < count:
        raise UserError(f"host {index} is not one of {count}: hosts are numbered from 0")
    return Hosts(index, count)


def join_cluster() -> bool:
    """Joins the processes that this one was started beside, if there are any.

    JAX finds them: the hosts of a TPU slice or of several by their environment or the metadata
    server, the tasks of Slurm and Open MPI. The chips of a pod start only together.

    Returns:
        Whether there was a cluster to join; one of a single host is one, too.

    Raises:
        PassingError: another process has the chips, or the metadata server does not answer.
        UserError: this is one of several hosts, and cannot use its chips.
    """
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return False  # By the user's wish this is no host of a pod, wherever it runs.
    chips.refuse_if_taken()
    import jax

    try:
        # JAX ends the process where peers do not come.
        with _waiting():
            jax.distributed.initialize()
    except ValueError as error:
        if "coordinator_address should be defined" not in str(error):
            raise UserError(f"the cluster of this process cannot be joined: {error}") from None
        _refuse_half_a_pod()
        return False
    except OSError as error:
        raise PassingError(
            f"this machine has TPU chips, and the metadata server that knows its pod does not "
            f"answer ({error}); TPU_SKIP_MDS_QUERY=1 for a machine that is no part of one"
        ) from None
    return True


def _refuse_half_a_pod() -> None:
    """Raises UserError where JAX has found no cluster, for it found no chips it can use."""
    several = "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
    names = ["TPU_WORKER_HOSTNAMES"] if several else []
    names += [n for n in ("MEGASCALE_COORDINATOR_ADDRESS",) if n in os.environ]
    if names:
        why = f"one of several hosts ({', '.join(names)})"
    elif chips.devices() and not _has_libtpu():
        why = "a machine with TPU chips"
    else:
        return
    raise UserError(
        f"this is {why}, and JAX cannot use its chips: is libtpu installed (launch/setup_venv.sh "
        "tpu)? JAX_PLATFORMS=cpu does without them"
    )


def _has_libtpu() -> bool:
    import importlib.util

    return "TPU_LIBRARY_PATH" in os.environ or importlib.util.find_spec("libtpu") is not None


@contextlib.contextmanager
def _waiting() -> Iterator[None]:
    """Says after a while what is waited for; where the process ends here, its supervisor knows."""
    line = (
        "waiting for the other hosts of this pod: each of them has to run this command (on TPU "
        "VMs: gcloud compute tpus tpu-vm ssh NAME --worker=all --command=...) and to reach the "
        "first one's port 8482, or that of JAX_COORDINATOR_PORT, through any firewall"
    )
    timer = threading.Timer(_PATIENCE_SECONDS, lambda: print(line, file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    exit_reason.report(exit_reason.WAITING)
    try:
        yield
    finally:
        timer.cancel()
        exit_reason.report("")

"""A command that is started by hand on every host of a pod joins them, as JAX would."""

import contextlib
import importlib.util
import os
from pathlib import Path
import subprocess
import sys

import pytest

from launch.local_pod import free_port
from tests.multihost import metadata

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="without libtpu JAX sees no TPU VM"
)

# A machine with four chips, by what JAX reads of it; its programs run on the CPU all the same.
_MACHINE = """
import glob, sys
found, chips = glob.glob, sys.argv[1]
glob.glob = lambda pattern, **how: found(pattern.replace("/sys/bus/pci", chips), **how)
import jax
assert jax._src.cloud_tpu_init.running_in_cloud_tpu_vm == bool(chips)
jax.config.update("jax_platforms", "cpu")
"""
_TRAIN = """
from shortcut_tpu.pod import distributed
distributed.initialize()
print("place", jax.process_index(), jax.process_count())
"""
_REFUSE = """
import time
from data_pipeline.errors import UserError, exit_on_user_error
from data_pipeline.hosts import find_hosts
def main():
    if find_hosts().index == 1:
        raise UserError("no")
    time.sleep(600)
exit_on_user_error(main)()
"""
_ENCODE = """
from data_pipeline.hosts import find_hosts
hosts = find_hosts()
print("place", hosts.index, hosts.count)
"""


def chips(folder: Path, count: int = 4) -> Path:
    """The PCI tree of a v4 host."""
    for number in range(count):
        device = folder / "devices" / str(number)
        device.mkdir(parents=True)
        (device / "vendor").write_text("0x1ae0\n")
        (device / "device").write_text("0x005e\n")
    return folder


def start(code: str, machine: Path | str, metadata_server: str, **more: str) -> subprocess.Popen:
    names = ("JAX_PLATFORMS", "TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD")
    inherited = {name: value for name, value in os.environ.items() if name not in names}
    return subprocess.Popen(
        [sys.executable, "-c", _MACHINE + code, str(machine)],
        cwd=ROOT,
        env={
            **inherited,
            "PYTHONPATH": str(ROOT),
            "JAX_NUM_CPU_DEVICES": "1",
            "GCE_METADATA_IP": metadata_server,
            **more,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def slurm_task(number: int, count: int) -> dict[str, str]:
    """The environment of one of the tasks of `srun`."""
    return {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": str(count),
        "SLURM_PROCID": str(number),
        "SLURM_LOCALID": str(number),
    }


def said(process: subprocess.Popen) -> str:
    try:
        output, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    return output


def test_hosts_started_by_hand_find_each_other_by_the_metadata_server(tmp_path):
    machine, port = chips(tmp_path / "pci"), str(free_port())
    with contextlib.ExitStack() as servers:
        processes = []
        # The two forms in which workers have been listed.
        for number, workers in ((0, "127.0.0.1,127.0.0.1"), (1, "w:0:127.0.0.1,w:1:127.0.0.1")):
            attributes = {
                "agent-worker-number": str(number),
                "worker-network-endpoints": workers,
                "tpu-env": "ACCELERATOR_TYPE: 'v4-16'\n",
            }
            server = servers.enter_context(metadata.serving(attributes))
            code = (_TRAIN, _ENCODE)[number]
            processes.append(start(code, machine, server, JAX_COORDINATOR_PORT=port))
        assert [said(process) for process in processes] == ["place 0 2\n", "place 1 2\n"]


def test_a_host_that_refuses_does_not_wait_for_the_others(tmp_path):
    port, tasks = str(free_port()), [slurm_task(number, 2) for number in range(2)]
    hosts = [start(_REFUSE, "", "", JAX_COORDINATOR_PORT=port, **task) for task in tasks]
    try:
        _, errors = hosts[1].communicate(timeout=60)
        assert (hosts[1].returncode, errors) == (1, "error: no\n")
        assert hosts[0].poll() is None
    finally:
        for host in hosts:
            host.kill()
            host.communicate()


def test_a_metadata_server_that_is_not_there_is_said(tmp_path):
    code = """
from data_pipeline.errors import exit_on_user_error
from data_pipeline.hosts import find_hosts
exit_on_user_error(find_hosts)()
"""
    process = start(code, chips(tmp_path / "pci"), f"127.0.0.1:{free_port()}")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert errors.startswith("error: this machine has TPU chips, and the metadata server")
    assert errors.count("\n") == 1


def test_a_machine_of_no_cluster_is_alone_and_the_tasks_of_slurm_are_not():
    alone = start(_ENCODE, "", "")
    port, processes = str(free_port()), []
    for number in range(2):
        task = slurm_task(number, 2)
        processes.append(start(_TRAIN, "", "", JAX_COORDINATOR_PORT=port, **task))
    assert said(alone) == "place 0 1\n"
    assert [said(process) for process in processes] == ["place 0 2\n", "place 1 2\n"]

"""A second command on a machine whose chips are taken ends in a line that says by whom."""

import os
from pathlib import Path
import subprocess
import sys
import threading

import jax
import pytest

from data_pipeline import chips, hosts
from data_pipeline.errors import PassingError, UserError, exit_on_user_error
from data_pipeline.hosts import join_cluster


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with one chip of each kind of device file, and a disk behind a third."""
    monkeypatch.setattr(chips, "ROOT", tmp_path)
    monkeypatch.delenv("ALLOW_MULTIPLE_LIBTPU_LOAD", raising=False)
    monkeypatch.delenv("JAX_PLATFORMS")
    (tmp_path / "dev" / "vfio").mkdir(parents=True)
    for name in ("accel0", "vfio/0", "vfio/1", "vfio/vfio"):
        (tmp_path / "dev" / name).touch()
    for group, vendor in (("0", "0x1ae0"), ("1", "0x10de")):
        device = tmp_path / "sys" / "kernel" / "iommu_groups" / group / "devices" / "0000:00:01.0"
        device.mkdir(parents=True)
        (device / "vendor").write_text(f"{vendor}\n")
    return tmp_path


def holder(path: Path) -> subprocess.Popen:
    code = "import sys; held = open(sys.argv[1]); print('held', flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_only_chips_are_looked_at(machine):
    assert [str(path.relative_to(machine)) for path in chips.devices()] == [
        "dev/accel0",
        "dev/vfio/0",
    ]


@pytest.mark.parametrize("name", ["accel0", "vfio/0"])
def test_the_process_that_has_the_chips_is_named_before_anything_is_joined(
    machine, name, monkeypatch
):
    monkeypatch.setattr(jax.distributed, "initialize", lambda: pytest.fail("joined"))
    with holder(machine / "dev" / name) as process:
        try:
            with pytest.raises(PassingError) as error:
                join_cluster()
            words = f"the TPU of this machine is in use by process {process.pid} ("
            assert str(error.value).startswith(words)
            assert os.path.basename(sys.executable) in str(error.value)
            # What libtpu says names the process in one of its forms, and we in all.
            for libtpu in (
                f"ABORTED: The TPU is already in use by process with pid {process.pid}.",
                "The TPU is already in use by another process probably owned by another user.",
                "open(/dev/vfio/0): Device or resource busy: Couldn't open iommu group /dev/vfio/0",
            ):
                assert chips.taken_line(libtpu).startswith(words)
            monkeypatch.setenv("TPU_VISIBLE_CHIPS", "0")
            chips.refuse_if_taken()
        finally:
            process.stdin.close()


def test_others_files_are_no_chips(machine):
    with holder(machine / "dev" / "vfio" / "1") as process:
        chips.refuse_if_taken()
        process.stdin.close()


def test_libtpus_error_is_a_line_and_others_keep_their_traceback(machine, capsys, tmp_path):
    outcome = tmp_path / "outcome"
    lock = (
        "ABORTED: Internal error when accessing libtpu multi-process lockfile. "
        'Run "$ sudo rm /tmp/libtpu_lockfile".'
    )

    def fails(said):
        raise RuntimeError(f"Unable to initialize backend 'tpu': {said}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHORTCUT_TPU_OUTCOME", str(outcome))
        with pytest.raises(SystemExit) as status:
            exit_on_user_error(fails)(lock)
    assert status.value.code == 1
    assert capsys.readouterr().err.startswith("error: the TPU of this machine is in use by another")
    # It may pass: the supervisor is not told to leave it.
    assert not outcome.exists()
    for other in ("No TPU found", "open(disk): Device or resource busy"):
        with pytest.raises(RuntimeError, match="Unable to initialize"):
            exit_on_user_error(fails)(other)


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """JAX as where it finds no cluster, and a machine without chips."""

    def initialize():
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(chips, "ROOT", tmp_path)
    for name in ("JAX_PLATFORMS", "TPU_WORKER_HOSTNAMES", "MEGASCALE_COORDINATOR_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_where_jax_finds_no_cluster_there_is_none(alone, monkeypatch):
    assert not join_cluster()
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    assert not join_cluster()


@pytest.mark.parametrize(
    ("name", "value"),
    [("TPU_WORKER_HOSTNAMES", "a,b"), ("MEGASCALE_COORDINATOR_ADDRESS", "a:8080")],
)
def test_a_host_of_several_that_cannot_use_its_chips_does_not_go_on_alone(
    alone, monkeypatch, name, value
):
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"one of several hosts \\({name}\\), .* is libtpu"):
        join_cluster()
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert not join_cluster()


def test_chips_without_libtpu_are_not_left_idle(alone, monkeypatch):
    (alone / "dev").mkdir()
    (alone / "dev" / "accel0").touch()
    monkeypatch.setattr(hosts, "_has_libtpu", lambda: False)
    with pytest.raises(UserError, match="a machine with TPU chips, and JAX cannot use its chips"):
        join_cluster()


def test_what_is_waited_for_is_said_to_people_and_to_the_supervisor(alone, monkeypatch, capsys):
    outcome, written = alone / "outcome", threading.Event()
    monkeypatch.setenv("SHORTCUT_TPU_OUTCOME", str(outcome))
    monkeypatch.setattr(hosts, "_PATIENCE_SECONDS", 0.0)
    seen = []

    def initialize():
        written.wait(0.2)
        seen.append(outcome.read_text())

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    assert join_cluster()
    assert seen == ["waiting"]
    assert outcome.read_text() == ""
    assert "waiting for the other hosts of this pod: each of them has" in capsys.readouterr().err


def test_libtpu_is_told_of_a_machine_without_chips_alone(machine, monkeypatch):
    names = ("TPU_WORKER_HOSTNAMES", "TPU_ACCELERATOR_TYPE", "TPU_MIN_LOG_LEVEL")
    for name in names:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    chips.quiet_without_any()
    assert not set(names) & set(os.environ)
    for file in chips.devices():
        file.unlink()
    # A chip that the kernel's driver has not opened for anyone.
    vendor = machine / "sys" / "bus" / "pci" / "devices" / "0000:00:04.0" / "vendor"
    vendor.parent.mkdir(parents=True)
    vendor.write_text("0x1ae0\n")
    chips.quiet_without_any()
    assert not set(names) & set(os.environ)
    vendor.write_text("0x10de\n")
    chips.quiet_without_any()
    assert set(names) <= set(os.environ)


def test_a_command_says_nothing_of_tpus_where_there_are_none():
    """Where libtpu is installed JAX tries it; it prints on its own, past every log."""
    code = "from data_pipeline.command_line import quiet_libraries as q; q(); import jax;"
    environment = {k: v for k, v in os.environ.items() if k[:4] not in ("TPU_", "JAX_")}
    done = subprocess.run(
        [sys.executable, "-c", f"{code} print(jax.devices()[0].platform)"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    if done.stdout == "cpu\n":
        assert done.stderr == ""

"""Checks which process uses this machine's TPU chips; only one can.

A second one that joined the pod in the place of the first would take the first one's run down, so
this is asked before anything is joined.

Usage:
    refuse_if_taken()
    line = taken_line(str(error))     # what libtpu complains of, as a line; None for other errors
"""

from collections.abc import Iterator
import contextlib
import os
from pathlib import Path
import re

from data_pipeline.errors import PassingError

# The root of the file system, for tests.
ROOT = Path("/")
_GOOGLE = "0x1ae0"
# A process with one of these was given some of the chips only.
_SHARED = ("TPU_VISIBLE_CHIPS", "TPU_VISIBLE_DEVICES", "ALLOW_MULTIPLE_LIBTPU_LOAD")
_LONGEST = 100
# What libtpu asks a TPU VM for; errors alone are worth a line then.
_NO_TPU_VM = {
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_MIN_LOG_LEVEL": "3",
}
# libtpu's own words.
_TAKEN = re.compile(
    r"The TPU is already in use|libtpu multi-process lockfile|Couldn't open iommu group"
    r"|/dev/(accel|vfio).*Device or resource busy"
)


def devices() -> list[Path]:
    """The device files of this machine's chips."""
    groups = [
        path
        for path in sorted((ROOT / "dev" / "vfio").glob("[0-9]*"))
        if _is_google(ROOT / "sys" / "kernel" / "iommu_groups" / path.name)
    ]
    return sorted((ROOT / "dev").glob("accel[0-9]*")) + groups


def _is_google(group: Path) -> bool:
    return any(path.read_text().strip() == _GOOGLE for path in group.glob("devices/*/vendor"))


def quiet_without_any() -> None:
    """Keeps libtpu from complaining of a machine that has no chips.

    Where it is installed JAX tries it on every machine, and goes on without: what it then prints
    about names and types that only TPU VMs have reads like an error. Must come before JAX's first
    look at its devices. Where there are chips, or someone has said what they are, nothing changes.
    """
    on_bus = (ROOT / "sys" / "bus" / "pci" / "devices").glob("*/vendor")
    told = any(name in os.environ for name in _NO_TPU_VM)
    if told or devices() or any(path.read_text().strip() == _GOOGLE for path in on_bus):
        return
    os.environ.update(_NO_TPU_VM)


def refuse_if_taken() -> None:
    """Returns if no other process has a chip of this machine.

    Raises:
        PassingError: one has.
    """
    if any(name in os.environ for name in _SHARED):
        return
    taken = {str(path) for path in devices()}
    for process in _openers(taken) if taken else ():
        raise PassingError(_line(process))


def taken_line(said: str) -> str | None:
    """The line for an error of libtpu that means that another process has the chips."""
    if not _TAKEN.search(said):
        return None
    if match := re.search(r"in use by process with pid (\d+)", said):
        return _line(int(match[1]))
    for process in _openers({str(path) for path in devices()}):
        return _line(process)
    return (
        "the TPU of this machine is in use by another process, probably another user's: `sudo lsof "
        "/dev/accel* /dev/vfio/*` names it. If it names none, remove /tmp/libtpu_lockfile"
    )


def _openers(files: set[str]) -> Iterator[int]:
    """Processes that have one of the files open, as far as this user may see."""
    for folder in Path("/proc").glob("[0-9]*"):
        if int(folder.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            links = {_target(path) for path in (folder / "fd").iterdir()}
            if links & files:
                yield int(folder.name)


def _target(link: Path) -> str:
    # The process may close it meanwhile.
    with contextlib.suppress(OSError):
        return os.readlink(link)
    return ""


def _line(process: int) -> str:
    said = ""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ")
        said = words.decode(errors="replace").strip()
    if len(said) > _LONGEST:
        said = f"{said[:_LONGEST]}..."
    return (
        f"the TPU of this machine is in use by process {process}"
        f"{f' ({said})' if said else ''}: stop that, or wait until it has ended"
    )

"""Records packages, devices and hosts in the workdir, one line for each start.

Usage:
  record(workdir, step=0)
  starts = recorded(workdir)    # [{"step": 0, "time": "2026-...", "jax": "0.10.2", ...}, ...]
"""

import datetime
import importlib.metadata
import json
import platform
from typing import Any

from etils import epath
import jax

from data_pipeline.atomic_files import write_text
import shortcut_tpu

FILE = "environment.jsonl"
_PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def describe() -> dict[str, str | int]:
    """This process's packages and the devices of all."""
    found: dict[str, str | int] = {"shortcut_tpu": shortcut_tpu.__version__}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    devices = jax.devices()
    return found | {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processes": jax.process_count(),
        "devices": len(devices),
        "device_kind": devices[0].device_kind,
    }


def record(workdir: epath.Path, step: int) -> None:
    """Adds a line for a start that goes on from this step; called on the first host."""
    path = workdir / FILE
    # A bucket knows no appending.
    before = path.read_text() if path.exists() else ""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    write_text(path, before + json.dumps({"step": step, "time": now, **describe()}) + "\n")


def recorded(workdir: epath.Path) -> list[dict[str, Any]]:
    """The starts of a run, oldest first; lines that cannot be read are left out."""
    path = workdir / FILE
    starts = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            start = json.loads(line)
        except ValueError:
            continue
        if isinstance(start, dict):
            starts.append(start)
    return starts

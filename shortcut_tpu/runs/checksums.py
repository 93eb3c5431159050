"""Checksums of checkpoints, by which a damaged one is found.

A folder WORKDIR/checkpoints/STEP is whole when every file named in WORKDIR/checksums/STEP.json has
the content it had when the save finished. Nothing is ever deleted for failing that: it is set aside
in WORKDIR/damaged. Both stand outside WORKDIR/checkpoints, for in a bucket Orbax takes what it does
not know in its folder for a save that was interrupted, and deletes it.

Usage, folder being WORKDIR/checkpoints:
  write(folder, 1000)
  problem = find_problem(folder, 1000)    # None, or what is wrong in a few words
  set_aside(folder, 1000)
"""

from collections.abc import Mapping
import concurrent.futures
import contextlib
import hashlib
import json
import time
from typing import Any

from etils import epath

from data_pipeline.atomic_files import failures, file_sha256, write_text
from data_pipeline.system_errors import raise_if_system, unreadable

_CHECKSUMS = "checksums"
_DAMAGED = "damaged"
_THREADS = 8
# A host that has not read its share in so long will not; the first does it then.
_PATIENCE_SECONDS = 600.0
_POLL_SECONDS = 0.05

UNFINISHED = "its save or its removal was interrupted"


def steps(folder: epath.Path) -> list[int]:
    """The steps that have a folder or checksums, whole or not, ascending."""
    found = {path.name for path in _children(folder)}
    found |= {path.stem for path in _children(folder.parent / _CHECKSUMS)}
    return sorted(int(name) for name in found if name.isdecimal())


def finished(folder: epath.Path) -> list[int]:
    """The steps whose save was finished, ascending; they may have been damaged since."""
    return [step for step in steps(folder) if _checksums_of(folder, step).exists()]


def write(folder: epath.Path, step: int, host: int = 0, hosts: int = 1) -> None:
    """Reads a finished checkpoint and writes the checksums of its files, whole or not at all.

    Args:
      folder: of all checkpoints.
      step: of this one.
      host: that this is; each reads a share of the files, the first writes what all have found.
      hosts: that do the same, with this step, at this time.
    """
    content = _describe_share(folder / str(step), host, hosts)
    if host:
        write_text(_part_of(folder, step, host), json.dumps(content))
        return
    for other in range(1, hosts):
        content |= _take_part(folder, step, other)
    # None is missing where a host could not do its share.
    directory = folder / str(step)
    for path in _walk(directory):
        name = str(path.relative_to(directory))
        content[name] = content.get(name) or _describe(path)
    text = json.dumps({"step": step, "files": dict(sorted(content.items()))}, indent=2)
    write_text(_checksums_of(folder, step), text + "\n")


def forget_parts(folder: epath.Path, step: int, hosts: int) -> None:
    """Removes what hosts have found of a save that was interrupted; before the next of the step."""
    for host in range(1, hosts):
        _part_of(folder, step, host).unlink(missing_ok=True)
    (folder.parent / _CHECKSUMS).mkdir(parents=True, exist_ok=True)


def _describe_share(directory: epath.Path, host: int, hosts: int) -> dict[str, Any]:
    sizes = {str(path.relative_to(directory)): path.stat().length for path in _walk(directory)}
    mine = _share(sizes, host, hosts)
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
        described = threads.map(lambda name: _describe(directory / name), mine)
        return dict(zip(mine, described, strict=True))


def _share(sizes: Mapping[str, int], host: int, hosts: int) -> list[str]:
    """A host's files, dealt by size: a few hold nearly all bytes, and each host writes the same."""
    return sorted(sizes, key=lambda name: (-sizes[name], name))[host::hosts]


def _take_part(folder: epath.Path, step: int, host: int) -> dict[str, Any]:
    """What a host has found, once it has; nothing where it takes too long."""
    path, deadline = _part_of(folder, step, host), time.monotonic() + _PATIENCE_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            return {}
        time.sleep(_POLL_SECONDS)
    found: dict[str, Any] = json.loads(path.read_text())
    path.unlink()
    return found


def _part_of(folder: epath.Path, step: int, host: int) -> epath.Path:
    return folder.parent / _CHECKSUMS / f"of-{step}-by-{host}.json"


def find_problem(folder: epath.Path, step: int, host: int = 0, hosts: int = 1) -> str | None:
    """What is wrong with a host's share of a checkpoint's files, in a few words; None for nothing.

    Args:
      folder: of all checkpoints.
      step: of this one.
      host: that this is.
      hosts: that read a share each.

    Raises:
      UserError: the system cannot read it, which does not make it damaged.
    """
    if not _checksums_of(folder, step).exists():
        return UNFINISHED
    try:
        files = json.loads(_checksums_of(folder, step).read_text())["files"]
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except failures(AttributeError, KeyError, TypeError, ValueError) as error:
        raise_if_system(_checksums_of(folder, step), error)
        return f"{_CHECKSUMS}/{step}.json cannot be read"

    sizes = {name: size for name, (size, _) in expected.items()}

    def check(name: str) -> str | None:
        size, sha256 = expected[name]
        path = folder / str(step) / name
        try:
            if path.stat().length != size:
                return f"{name} has {path.stat().length} bytes instead of {size}"
            return None if file_sha256(path) == sha256 else f"{name} is not what was written"
        except FileNotFoundError:
            return f"{name} is missing"
        except failures() as error:
            raise unreadable(path, error) from None

    with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
        problems = [
            problem for problem in threads.map(check, _share(sizes, host, hosts)) if problem
        ]
    return problems[0] if problems else None


def digest(folder: epath.Path, step: int) -> str:
    """Tells a finished checkpoint from any other by its content: a SHA-256, in hexadecimal.

    Raises:
      OSError: it was not finished.
    """
    return hashlib.sha256(_checksums_of(folder, step).read_bytes()).hexdigest()


def digest_of(workdir: epath.Path, step: int) -> str:
    """`digest` of a run's checkpoint; empty for one that has no checksums."""
    try:
        return digest(workdir / "checkpoints", step)
    except OSError:
        return ""


def set_aside(folder: epath.Path, step: int) -> epath.Path:
    """Moves what there is of a checkpoint to where no run looks for one; returns the place."""
    damaged = folder.parent / _DAMAGED
    damaged.mkdir(parents=True, exist_ok=True)
    number, place = 0, damaged / str(step)
    while place.exists() or place.with_suffix(".json").exists():
        number += 1
        place = damaged / f"{step}-{number}"
    _move(folder / str(step), place)
    _move(_checksums_of(folder, step), place.with_suffix(".json"))
    return place


def remove(folder: epath.Path, step: int) -> None:
    """Deletes a checkpoint that is no longer wanted; an interrupted removal leaves no whole one."""
    _checksums_of(folder, step).unlink(missing_ok=True)
    (folder / str(step)).rmtree(missing_ok=True)


def remove_leftovers(folder: epath.Path, step: int) -> None:
    """Deletes what a failed save wrote, as far as that is possible, for it may fill the disk."""
    with contextlib.suppress(OSError):
        remove(folder, step)
        for path in _children(folder):
            if path.name.startswith(f"{step}."):
                path.rmtree()


def read_config(folder: epath.Path, step: int) -> dict[str, Any]:
    """The config of the run that wrote a checkpoint."""
    return json.loads((folder / str(step) / "config" / "metadata").read_text())


def _checksums_of(folder: epath.Path, step: int) -> epath.Path:
    return folder.parent / _CHECKSUMS / f"{step}.json"


def _children(folder: epath.Path) -> list[epath.Path]:
    return list(folder.iterdir()) if folder.exists() else []


def _walk(directory: epath.Path) -> list[epath.Path]:
    files = []
    for path in directory.iterdir():
        files += _walk(path) if path.is_dir() else [path]
    return files


def _describe(path: epath.Path) -> dict[str, Any]:
    return {"bytes": path.stat().length, "sha256": file_sha256(path)}


def _move(source: epath.Path, target: epath.Path) -> None:
    if source.exists():
        source.rename(target)

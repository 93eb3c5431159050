"""Writes files that appear whole or not at all, on a disk or in a bucket.

On a disk a file is written under another name and renamed. In a bucket every file appears when its
upload is through, so it needs no other name.

Usage:
    write_json(epath.Path("gs://BUCKET/manifest.json"), content)
    write_text(epath.Path("DIR/notes"), "text")
    write_output("sheet.png", png)     # and a UserError where it cannot
    put(Path("shard.tmp"), epath.Path("gs://BUCKET/shard"))
    try:
        ...
    except failures() as error:   # whatever disks and buckets raise
        ...
"""

import contextlib
import errno
import hashlib
import json
import os
from pathlib import Path
import sys
import tempfile
from typing import Any, Literal

from etils import epath

from data_pipeline.errors import UserError
from data_pipeline.system_errors import kind_of

_CHUNK_BYTES = 1 << 24


def in_bucket(path: str | os.PathLike[str]) -> bool:
    """Whether a path is of a bucket, such as gs://BUCKET/DIR."""
    return "://" in os.fspath(path)


def failures(*more: type[Exception]) -> tuple[type[Exception], ...]:
    """What reading and writing raises; TensorFlow, which is imported for buckets, has its own."""
    tensorflow = sys.modules.get("tensorflow")
    return (OSError, *more, *((tensorflow.errors.OpError,) if tensorflow else ()))


def file_sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with epath.Path(path).open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def require_place(flag: str, path: str, kind: Literal["file", "folder", "either"] = "file") -> None:
    """Refuses a place that cannot be written, before the work whose result is to lie there.

    Args:
        flag: that named it.
        path: a file or folder, here already or not; nothing of it is made or changed.
        kind: which of them it is going to be.

    Raises:
        UserError: a file stands in the way, rights or room are lacking, or the name is none. A
            PassingError for a full disk: a run that goes on when it has room must not end of it.
    """
    if in_bucket(path):
        return
    place = Path(path).absolute()
    nearest = next(p for p in (place, *place.parents) if os.path.lexists(p))
    try:
        if place.is_dir() and kind == "file":
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        # In a file, or a link to nothing, no folder can be made.
        if not nearest.is_dir() and (nearest != place or kind == "folder"):
            raise NotADirectoryError(errno.ENOTDIR, f"{nearest} is no folder")
        # Names that are too long, and files where folders must be, are found by looking.
        for part in place.relative_to(nearest).parts:
            with contextlib.suppress(FileNotFoundError):
                (nearest / part).lstat()
        with tempfile.TemporaryFile(dir=nearest if nearest.is_dir() else nearest.parent) as file:
            file.write(b"\0")
    except OSError as error:
        said = f"--{flag}={path}: cannot be written: {error.strerror}"
        raise kind_of(error)(said) from None


def put(written: Path, path: epath.Path) -> None:
    """Gives a local file its place, and takes what was there.

    Args:
        written: the file, complete; gone afterwards unless the place is in a bucket.
        path: its place; on the same disk, or in a bucket.

    Raises:
        one of `failures()`.
    """
    if in_bucket(path):
        epath.Path(written).copy(path, overwrite=True)
    else:
        with written.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(written, path)


def write_bytes(path: epath.Path, content: bytes, suffix: str = ".tmp") -> None:
    """Writes bytes as `write_text` does a text.

    Raises:
        one of `failures()`.
    """
    if in_bucket(path):
        path.write_bytes(content)
    else:
        temporary = Path(path.with_name(f".{path.name}{suffix}"))
        temporary.write_bytes(content)
        put(temporary, path)


def write_text(path: epath.Path, text: str, suffix: str = ".tmp") -> None:
    """Writes a text, whole or not at all.

    Args:
        path: the file.
        text: all of it.
        suffix: what the temporary file beside it ends in; each of several writers needs its own.

    Raises:
        one of `failures()`.
    """
    write_bytes(path, text.encode(), suffix)


def write_json(path: epath.Path, content: Any, suffix: str = ".tmp") -> None:
    """Writes indented JSON as `write_text` does; the same content gives the same bytes.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        write_text(path, json.dumps(content, indent=2) + "\n", suffix)
    except failures() as error:
        raise UserError(f"{path}: cannot be written: {error}") from None


def write_output(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file that a user asked for, and the folders it lies in.

    Raises:
        UserError: it cannot be written.
    """
    place = epath.Path(path)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(place, content)
    except failures() as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be written: {reason}") from None

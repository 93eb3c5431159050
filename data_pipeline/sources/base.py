"""The interface of image sources, and what sources of image files share.

Usage:
    class TinySource:  # matches `Source` or `EncodedSource` by its members; no need to inherit
        name = "tiny"
        ...
"""

from collections.abc import Iterable
import dataclasses
import fnmatch
import glob as glob_lib
import hashlib
import os
import re
from typing import Any, Protocol, runtime_checkable

from etils import epath
import numpy as np

from data_pipeline.atomic_files import failures, in_bucket
from data_pipeline.errors import UserError
from data_pipeline.sources.class_order import refuse_mixed_splits
from data_pipeline.system_errors import unreadable

UNLABELED = "unlabeled"  # The one class of images that have none.

MAX_LABEL = 1 << 20  # Larger ones are damage or another numbering; every label makes a class.

# Longer brace ranges are mistyped; no data set has so many shards.
_MAX_EXPANSION = 1 << 20


@runtime_checkable
class Source(Protocol):
    """Labelled images of one shape, in an order that never changes."""

    @property
    def name(self) -> str:
        """A name for people, such as digits or npz:images.npz."""

    @property
    def digest(self) -> str:
        """Tells this source from others by what it holds, wherever it lies."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of every label, by label."""

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape [H, W, C] of every image."""

    def __len__(self) -> int:
        """How many images there are."""

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Reads images start..stop-1.

        Returns:
            Images [n, H, W, C] float32 in [-1, 1] and labels [n] int32.
        """


@dataclasses.dataclass(frozen=True)
class EncodedImage:
    """One image as it lies in its source.

    Attributes:
        data: the bytes of an image file.
        label: an index into the source's class names.
        name: the image's name within the source, the same wherever the source lies.
        problem: why the source itself could not make out the image, or None; data and label mean
            nothing then.
    """

    data: bytes
    label: int
    name: str
    problem: str | None = None


@runtime_checkable
class EncodedSource(Protocol):
    """Labelled image files of any sizes, in an order that never changes."""

    @property
    def name(self) -> str:
        """A name for people, such as imagefolder:train."""

    @property
    def digest(self) -> str:
        """Tells this source from others by names, labels and sizes, wherever it lies.

        The images' content is not in it: reading it would take as long as encoding it.
        """

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of every label, by label."""

    def __len__(self) -> int:
        """How many images there are."""

    def read_encoded(self, start: int, stop: int) -> list[EncodedImage]:
        """Reads images start..stop-1; may be called from several threads at a time.

        Raises:
            UserError: a file cannot be read any more.
        """


def expand(pattern: str, extension: str = "") -> list[epath.Path]:
    """The files that a pattern names, sorted where it has wildcards.

    Args:
        pattern: a local path or one with a scheme that etils.epath knows, such as gs://; `{00..12}`
            stands for the numbers between, with as many digits; `{a,b}` for either; `*`, `?` and
            `[...]` match names; a comma stands between several patterns. A folder stands for its
            files with `extension`.
        extension: such as .tar.

    Raises:
        UserError: no file matches, a file of a range is missing, or one is named twice.
    """
    paths: list[epath.Path] = []
    # A file may have any name.
    for name in [pattern] if os.path.isfile(pattern) else _expand_braces(pattern):
        if extension and not name.endswith(extension) and epath.Path(name).is_dir():
            name = f"{name.rstrip('/')}/*{extension}"
        if not glob_lib.has_magic(name) or os.path.isfile(name):
            paths.append(epath.Path(name))
            continue
        parent, _, last = name.rpartition("/")
        if glob_lib.has_magic(parent):
            raise UserError(f"{name}: wildcards may stand in the last part of a pattern only")
        folder = epath.Path(parent or ("/" if name[0] == "/" else "."))
        try:
            found = _matches(folder, last)
        except failures() as error:
            raise unreadable(folder, error) from None
        if not found:
            raise UserError(f"{name}: no file matches")
        refuse_mixed_splits(name, found)
        paths.extend(found)
    seen: set[str] = set()
    for path in paths:
        try:
            there = path.is_file()
        except failures() as error:
            raise unreadable(path, error) from None
        if not there:
            raise UserError(f"{path}: no such file")
        if os.fspath(path) in seen:
            raise UserError(f"{pattern}: names {path.name} twice")
        seen.add(os.fspath(path))
    return paths


def _matches(folder: epath.Path, pattern: str) -> list[epath.Path]:
    """The files of a folder whose names match; pathlib's own glob takes a failure for none."""
    if in_bucket(folder):
        return sorted(folder.glob(pattern))
    if not folder.is_dir():
        return []
    return sorted(folder / name for name in fnmatch.filter(os.listdir(folder), pattern))


def _expand_braces(pattern: str) -> list[str]:
    """Splits at commas outside braces, and replaces each `{first..last}` and `{a,b}`."""
    parts = re.split(r",(?![^{}]*\})", pattern)
    if len(parts) > 1:
        if not all(parts):
            raise UserError(f"{pattern}: a comma without a file")
        return [name for part in parts for name in _expand_braces(part)]
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    before, rests = pattern[: match.start()], _expand_braces(pattern[match.end() :] or "")
    choices = _choices(pattern, match[1], _MAX_EXPANSION // len(rests))
    return [f"{before}{choice}{rest}" for choice in choices for rest in rests]


def _choices(pattern: str, inside: str, most: int) -> list[str]:
    """What a pair of braces stands for."""
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if numbers is None:
        if "," in inside:
            return inside.split(",")
        raise UserError(f"{pattern}: {{{inside}}} is neither a range of numbers nor a list")
    first, last = (int(number) for number in numbers.groups())
    if not 0 <= last - first < _MAX_EXPANSION:
        raise UserError(f"{pattern}: {{{inside}}} is not a range of files")
    if last - first + 1 > most:
        raise UserError(f"{pattern}: names more than {_MAX_EXPANSION} files")
    return [f"{n:0{len(numbers[1])}d}" for n in range(first, last + 1)]


def digest_of(items: Iterable[Any]) -> str:
    """The SHA-256 of a sequence of texts and numbers, each apart from the next."""
    content = hashlib.sha256()
    for item in items:
        content.update(f"{item!r}\n".encode("utf-8", "surrogateescape"))
    return content.hexdigest()

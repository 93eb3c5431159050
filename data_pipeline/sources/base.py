"""What every source of images offers, and what the sources of image files share.

Usage:
    class TinySource:  # matches `Source` or `EncodedSource` by its members; no need to inherit
        name = "tiny"
        ...
"""

from collections.abc import Iterable, Sequence
import dataclasses
import glob as glob_lib
import hashlib
import os
import re
from typing import Any, Protocol, runtime_checkable

from etils import epath
import numpy as np

from data_pipeline.errors import UserError

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


def expand(pattern: str) -> list[epath.Path]:
    """The files that a pattern names, sorted where it has wildcards.

    Args:
        pattern: a local path or one with a scheme that etils.epath knows, such as gs://; `{00..12}`
            stands for the numbers between, with as many digits; `*`, `?` and `[...]` match names.

    Raises:
        UserError: no file matches, or a file of a range is missing.
    """
    paths: list[epath.Path] = []
    for name in _expand_braces(os.path.expanduser(pattern)):
        if not glob_lib.has_magic(name):
            paths.append(epath.Path(name))
            continue
        parent, _, last = name.rpartition("/")
        if glob_lib.has_magic(parent):
            raise UserError(f"{name}: wildcards may stand in the last part of a pattern only")
        try:
            found = sorted(epath.Path(parent or ("/" if name[0] == "/" else ".")).glob(last))
        except OSError as error:
            raise UserError(f"{name}: cannot be listed: {reason(error)}") from None
        if not found:
            raise UserError(f"{name}: no file matches")
        paths.extend(found)
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: no such file")
    return paths


def _expand_braces(pattern: str) -> list[str]:
    """Replaces the first `{first..last}`, and in each result the next, by every number of it."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if match is None:
        return [pattern]
    first, last = (int(number) for number in match.groups())
    if not 0 <= last - first < _MAX_EXPANSION:
        raise UserError(f"{pattern}: {match.group()} is not a range of files")
    rests = _expand_braces(pattern[match.end() :])
    if (last - first + 1) * len(rests) > _MAX_EXPANSION:
        raise UserError(f"{pattern}: names more than {_MAX_EXPANSION} files")
    start, width = pattern[: match.start()], len(match.group(1))
    return [f"{start}{n:0{width}d}{rest}" for n in range(first, last + 1) for rest in rests]


def reason(error: BaseException) -> str:
    """An error as one short line, without the path that the message around it names already."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())[:200]


def digest_of(items: Iterable[Any]) -> str:
    """The SHA-256 of a sequence of texts and numbers, each apart from the next."""
    content = hashlib.sha256()
    for item in items:
        content.update(f"{item!r}\n".encode("utf-8", "surrogateescape"))
    return content.hexdigest()


def numbered_classes(labels: Sequence[int] | np.ndarray) -> tuple[str, ...]:
    """Class names 0, 1, ... up to the largest label, for sources that name none."""
    return tuple(str(label) for label in range(int(max(labels)) + 1))

"""Labelled images, by `KIND` or `KIND:PATH`.

Usage:
    source = open_source("digits")            # scikit-learn's digits
    source = open_source("npz:images.npz")    # a numpy archive with `images` and `labels`
    images, labels = source.read(0, 256)      # [256, H, W, C] float32 in [-1, 1], [256] int32
"""

from collections.abc import Callable
import hashlib
from pathlib import Path
from typing import Protocol
import zipfile

import numpy as np

from data_pipeline.errors import UserError


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


class ArraySource:
    """Images and labels that are whole in memory."""

    def __init__(
        self,
        name: str,
        images: np.ndarray,
        labels: np.ndarray,
        class_names: tuple[str, ...],
        to_unit: Callable[[np.ndarray], np.ndarray],
    ):
        """Holds the arrays as they are.

        Args:
            name: the source's name.
            images: [N, H, W, C] of any dtype.
            labels: [N] integers, each an index into class_names.
            class_names: the name of every label.
            to_unit: brings a slice of the images into [-1, 1].
        """
        self.name = name
        self.class_names = class_names
        self.image_shape = tuple(images.shape[1:])
        self._images = images
        self._labels = labels
        self._to_unit = to_unit
        content = hashlib.sha256(f"{images.dtype.str}{images.shape}{labels.dtype.str}".encode())
        for array in (images, labels):
            content.update(np.ascontiguousarray(array).data)
        self.digest = content.hexdigest()

    def __len__(self) -> int:
        return len(self._images)

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Source.read`."""
        images = self._to_unit(self._images[start:stop]).astype(np.float32)
        return images, self._labels[start:stop].astype(np.int32)


def open_source(spec: str) -> Source:
    """Opens the source that `KIND` or `KIND:PATH` names.

    Raises:
        UserError: the kind is unknown, or the path does not hold what the kind expects.
    """
    kind, _, path = spec.partition(":")
    if kind not in _KINDS:
        raise UserError(f"unknown source kind {kind!r}; the known ones are {', '.join(_KINDS)}")
    return _KINDS[kind](path)


def _open_digits(path: str) -> Source:
    """The 1797 digits of 8x8 pixels that scikit-learn carries."""
    if path:
        raise UserError(f"source digits takes no path, but {path!r} was given")
    from sklearn.datasets import load_digits  # Slow to import, and only needed here.

    digits = load_digits()
    return ArraySource(
        name="digits",
        images=digits.images[..., np.newaxis],
        labels=digits.target.astype(np.int32),
        class_names=tuple(str(digit) for digit in range(10)),
        to_unit=lambda pixels: pixels / 8.0 - 1.0,
    )


def _open_npz(path: str) -> Source:
    """A numpy archive: `images` [N, H, W, C], uint8 or floats in [-1, 1], and `labels` [N]."""
    if not path:
        raise UserError("source npz needs a path: --source=npz:PATH")
    try:
        # np.load leaves a file that it opened itself open where the archive is broken.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            images, labels = archive["images"], archive["labels"]
    except KeyError as error:
        raise UserError(f"{path}: {error.args[0]}; it needs `images` and `labels`") from None
    except (OSError, EOFError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a readable npz archive: {error}") from None
    if images.ndim != 4 or not images.size:
        raise UserError(f"{path}: images has shape {images.shape}, it needs [N, H, W, C]")
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"{path}: labels is {labels.dtype} {labels.shape}, it needs {len(images)} integers"
        )
    if labels.min() < 0 or labels.max() > np.iinfo(np.int32).max:
        raise UserError(f"{path}: labels lie outside the range of int32 from 0 on")
    if images.dtype == np.uint8:
        to_unit = _bytes_to_unit
    elif np.issubdtype(images.dtype, np.floating):
        to_unit = _already_unit
        if not (np.abs(images) <= 1).all():
            raise UserError(f"{path}: images of floats must lie in [-1, 1]")
    else:
        raise UserError(f"{path}: images is {images.dtype}, it needs uint8 or floats in [-1, 1]")
    names = tuple(str(label) for label in range(int(labels.max()) + 1))
    return ArraySource(f"npz:{Path(path).name}", images, labels, names, to_unit)


def _bytes_to_unit(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(np.float32) / 127.5 - 1.0


def _already_unit(pixels: np.ndarray) -> np.ndarray:
    return pixels


_KINDS: dict[str, Callable[[str], Source]] = {"digits": _open_digits, "npz": _open_npz}

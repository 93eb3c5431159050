"""Sources of arrays of one shape: scikit-learn's digits and numpy archives.

Usage:
    source = open_npz("images.npz")
    images, labels = source.read(0, 256)  # [256, H, W, C] float32 in [-1, 1], [256] int32
"""

from collections.abc import Callable
import hashlib

from etils import epath
import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.npz_files import read_npz


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
        """See `base.Source.read`."""
        images = self._to_unit(self._images[start:stop]).astype(np.float32)
        return images, self._labels[start:stop].astype(np.int32)


def open_digits(path: str) -> ArraySource:
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


def open_npz(path: str) -> ArraySource:
    """A numpy archive: `images` [N, H, W, C], uint8 or floats in [-1, 1], and `labels` [N]."""
    arrays = read_npz(path, ("images", "labels"))
    if len(arrays) < 2:
        raise UserError(f"{path}: it needs arrays `images` and `labels`")
    images, labels = arrays["images"], arrays["labels"]
    if images.ndim != 4 or not images.size:
        raise UserError(f"{path}: images has shape {images.shape}, it needs [N, H, W, C]")
    if images.shape[1] in (1, 3) and 4 < images.shape[2] == images.shape[3]:
        raise UserError(
            f"{path}: images has shape {images.shape}, channels first; it needs [N, H, W, C]"
        )
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
        if images.min() >= 0 and images.max() > 0:
            raise UserError(f"{path}: images lie in [0, 1], black at 0; give 2 x - 1, in [-1, 1]")
    else:
        raise UserError(f"{path}: images is {images.dtype}, it needs uint8 or floats in [-1, 1]")
    names = tuple(str(label) for label in range(int(labels.max()) + 1))
    return ArraySource(f"npz:{epath.Path(path).name}", images, labels, names, to_unit)


def _bytes_to_unit(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(np.float32) / 127.5 - 1.0


def _already_unit(pixels: np.ndarray) -> np.ndarray:
    return pixels

"""ArrayRecord files of tf.train.Example, as TFDS writes them for Grain.

An example has a feature `image`, the bytes of an image file, and a feature `label`, an integer;
`columns` has the other usual names. Class names come from TFDS's `label.labels.txt` beside the
files; without it the labels of all records are read once, to know how many there are.

Usage:
    source = ArrayRecordSource("imagenet2012/5.1.0/imagenet2012-train.array_record*")
"""

import contextlib
import os
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader
from etils import epath
import numpy as np

from data_pipeline.atomic_files import in_bucket
from data_pipeline.errors import UserError
from data_pipeline.sources.base import MAX_LABEL, UNLABELED, EncodedImage, digest_of, expand
from data_pipeline.sources.class_order import numbered, read_class_list
from data_pipeline.sources.columns import IMAGES, LABELS, USUAL, Columns, pick
from data_pipeline.sources.tf_example import parse_example
from data_pipeline.system_errors import raise_if_system, reason

_IMAGES_IN_DIGEST = 256  # Evenly spread.
_LOOKED_AT = 16  # Records of each file, for the names of their features.
_CHUNK = 256  # Records read together: one call costs as much as several records.


class ArrayRecordSource:
    """The records of ArrayRecord files, in the order of the files and within them."""

    def __init__(self, pattern: str, *, unlabeled: bool = False, columns: Columns = USUAL):
        """Counts the records.

        Args:
            pattern: the files, local; see `base.expand`.
            unlabeled: whether labels are left alone, and all records are of one class.
            columns: the names of the features, where they are not the usual ones.

        Raises:
            UserError: a file is missing, damaged or in a bucket, or no record has a label.
        """
        if in_bucket(pattern):
            raise UserError(f"{pattern}: ArrayRecord reads from disks only; mount the bucket")
        self._unlabeled = unlabeled
        self._paths = [os.fspath(path) for path in expand(pattern, ".array_record")]
        self.name = f"arrayrecord:{pattern.rpartition('/')[2]}"
        self._ends = np.cumsum([_count(path) for path in self._paths], dtype=np.int64)
        if not len(self):
            raise UserError(f"{pattern}: no records")
        self._columns = self._pick(columns)
        if unlabeled:
            names: tuple[str, ...] = (UNLABELED,)
        else:
            listed = read_class_list(epath.Path(self._paths[0]).parent)
            names = listed or self._names_from_labels()
        self.class_names = names
        # The files' sizes tell little: they are padded to whole blocks.
        sample = np.unique(np.linspace(0, len(self) - 1, _IMAGES_IN_DIGEST).astype(int)).tolist()
        images = (image for index in sample for image in self._read(index, index + 1))
        self.digest = digest_of((names, self._ends.tolist(), *(vars(image) for image in images)))

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read_encoded(self, start: int, stop: int) -> list[EncodedImage]:
        """See `base.EncodedSource.read_encoded`."""
        num_classes = len(self.class_names)
        images = self._read(start, stop)
        for image in images:
            if image.problem is None and image.label >= num_classes:
                raise UserError(f"{image.name}: label {image.label} of {num_classes} classes")
        return images

    def _read(self, start: int, stop: int) -> list[EncodedImage]:
        images = []
        while start < stop:
            number = int(np.searchsorted(self._ends, start, "right"))
            before = int(self._ends[number - 1]) if number else 0
            end = min(stop, int(self._ends[number]))
            base = os.path.basename(self._paths[number])
            records = _read_records(self._paths[number], start - before, end - before)
            images += [
                _to_image(record, f"{base}#{index}", self._columns)
                for index, record in enumerate(records, start=start - before)
            ]
            start = end
        return images

    def _pick(self, columns: Columns) -> Columns:
        """The names of the features, by the first record that is an example."""
        counts = np.diff(self._ends, prepend=0).tolist()
        for path, count in zip(self._paths, counts, strict=True):
            for record in _read_records(path, 0, min(count, _LOOKED_AT)):
                features = parse_example(record) if record is not None else None
                if features:
                    image = pick(features, IMAGES, columns.image, "image", path)
                    if self._unlabeled:
                        return Columns(image)
                    return Columns(image, pick(features, LABELS, columns.label, "label", path))
        raise UserError(f"{self._paths[0]}: no record is a tf.train.Example with image and label")

    def _names_from_labels(self) -> tuple[str, ...]:
        labels = [
            image.label
            for start in range(0, len(self), _CHUNK)
            for image in self._read(start, min(start + _CHUNK, len(self)))
            if image.problem is None
        ]
        if not labels:
            raise UserError(
                f"{self._paths[0]}: no record is a tf.train.Example with image and label"
            )
        return numbered(labels, None, "")


def _to_image(record: bytes | None, name: str, columns: Columns) -> EncodedImage:
    if record is None:
        return EncodedImage(b"", 0, name, "damaged record")
    features = parse_example(record)
    if features is None:
        return EncodedImage(b"", 0, name, "not a tf.train.Example")
    image, label = features.get(columns.image), features.get(columns.label)
    if not (isinstance(image, list) and len(image) == 1 and isinstance(image[0], bytes)):
        return EncodedImage(b"", 0, name, f"no single feature `{columns.image}` of bytes")
    if not columns.label:
        return EncodedImage(image[0], 0, name)
    if not (isinstance(label, list) and len(label) == 1 and type(label[0]) is int):
        return EncodedImage(b"", 0, name, f"no single feature `{columns.label}` of an integer")
    if not 0 <= label[0] < MAX_LABEL:
        return EncodedImage(b"", 0, name, f"label {label[0]} is out of range")
    return EncodedImage(image[0], label[0], name)


def _count(path: str) -> int:
    try:
        reader: Any = ArrayRecordReader(path)
        found = reader.num_records()
        reader.close()
    except (RuntimeError, MemoryError) as error:
        raise_if_system(path, error)
        raise UserError(f"{path}: not a readable ArrayRecord file: {reason(error)}") from None
    return found


def _read_records(path: str, start: int, stop: int) -> list[bytes | None]:
    """Records start..stop-1 of a file, None for a damaged one."""
    try:
        reader: Any = ArrayRecordReader(path)
    except (RuntimeError, MemoryError) as error:
        raise_if_system(path, error)
        raise UserError(f"{path}: not a readable ArrayRecord file: {reason(error)}") from None
    try:
        return reader.read(list(range(start, stop)))
    except RuntimeError as error:
        raise_if_system(path, error)
        # One damaged record spoils the call; a reader that failed once fails ever after.
        if stop - start == 1:
            return [None]
        middle = (start + stop) // 2
        return _read_records(path, start, middle) + _read_records(path, middle, stop)
    finally:
        with contextlib.suppress(RuntimeError):  # Its failure once more.
            reader.close()

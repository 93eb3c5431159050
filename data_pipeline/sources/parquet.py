"""Parquet files of images as Hugging Face's datasets writes them.

The column `image` holds structs of `bytes` and `path`, or the bytes themselves; `label` holds
integers; `columns` has the other usual names. Class names come from the schema's metadata or a list
beside the files. Needs pyarrow, the extra `parquet`.

Usage:
    source = ParquetSource("imagenet-1k/data/train-*.parquet")
"""

import contextlib
import functools
import json
import threading
from types import ModuleType
from typing import Any

from etils import epath
import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.sources.base import MAX_LABEL, UNLABELED, EncodedImage, digest_of, expand
from data_pipeline.sources.class_order import numbered, read_class_list
from data_pipeline.sources.columns import IMAGES, LABELS, USUAL, Columns, pick
from data_pipeline.system_errors import reason, unreadable

_GROUPS_IN_MEMORY = 4  # A row group of ImageNet's is a thousand images, 100 MB.


class ParquetSource:
    """The rows of parquet files, in the order of the files and within them."""

    def __init__(self, path: str, *, unlabeled: bool = False, columns: Columns = USUAL):
        """Reads the files' schemas and labels.

        Args:
            path: a file, a folder of .parquet files or a pattern; local or gs://.
            unlabeled: whether labels are left alone, and all rows are of one class.
            columns: the names of the columns, where they are not the usual ones.

        Raises:
            UserError: pyarrow is missing; a file is missing or damaged, or lacks the columns; or
                a label is missing or out of range.
        """
        self._pyarrow = _pyarrow()
        self._unlabeled = unlabeled
        self._columns = columns
        self._paths = expand(path, ".parquet")
        self.name = f"parquet:{path.rstrip('/').rpartition('/')[2]}"
        self._groups: list[tuple[int, int]] = []  # (file, row group within it)
        self._images: list[str] = []  # By file.
        sizes, labels, names = [], [], None
        for number, file in enumerate(self._paths):
            group_sizes, file_labels, file_names = self._index(file)
            self._groups += [(number, group) for group in range(len(group_sizes))]
            sizes += group_sizes
            labels.append(file_labels)
            if number and file_names != names:
                raise UserError(f"{file}: its classes are not those of {self._paths[0]}")
            names = file_names
        self._ends = np.cumsum(sizes, dtype=np.int64)
        self._labels = np.concatenate(labels)
        if not len(self._labels):
            raise UserError(f"{path}: no rows")
        names = names or read_class_list(self._paths[0].parent)
        self.class_names = numbered(self._labels, names, path)
        content = (file.stat().length for file in self._paths)
        self.digest = digest_of((self.class_names, sizes, self._labels.tolist(), *content))
        self._lock = threading.Lock()
        self._cached_group = functools.lru_cache(_GROUPS_IN_MEMORY)(self._read_group)

    def __len__(self) -> int:
        return len(self._labels)

    def read_encoded(self, start: int, stop: int) -> list[EncodedImage]:
        """See `base.EncodedSource.read_encoded`."""
        images = []
        for index in range(start, stop):
            group = int(np.searchsorted(self._ends, index, "right"))
            row = index - (int(self._ends[group - 1]) if group else 0)
            with self._lock:
                column = self._cached_group(group)
            value = column[row].as_py()
            inner = value if isinstance(value, dict) else {"bytes": value}
            name = f"{self._paths[self._groups[group][0]].name}#{index}"
            problem = None if inner.get("bytes") else "no bytes"
            images.append(
                EncodedImage(inner.get("bytes") or b"", int(self._labels[index]), name, problem)
            )
        return images

    def _index(self, path: epath.Path) -> tuple[list[int], np.ndarray, tuple[str, ...] | None]:
        """Row group sizes, labels [n] int32 and class names of a file."""
        with self._opened(path) as file:
            schema = file.schema_arrow
            names = schema.names
            self._images.append(pick(names, IMAGES, self._columns.image, "image", path))
            label = (
                None if self._unlabeled else pick(names, LABELS, self._columns.label, "label", path)
            )
            self._check_image_type(path, schema.field(self._images[-1]).type)
            sizes = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
            if label is None:
                return sizes, np.zeros(sum(sizes), np.int32), (UNLABELED,)
            if not self._pyarrow.types.is_integer(schema.field(label).type):
                raise UserError(f"{path}: {label} is {schema.field(label).type}, it needs integers")
            column = file.read(columns=[label]).column(label)
            if column.null_count or len(column) != sum(sizes):
                raise UserError(f"{path}: {label} is missing in some rows")
            labels = np.asarray(column.to_numpy())
            if labels.size and not 0 <= labels.min() <= labels.max() < MAX_LABEL:
                raise UserError(
                    f"{path}: {label} runs from {labels.min()} to {labels.max()}; it must lie in"
                    f" 0 .. {MAX_LABEL - 1} (-1 marks a split without labels; see --unlabeled)"
                )
            listed = _class_names(schema.metadata or {}, label)
        return sizes, labels.astype(np.int32), listed

    def _check_image_type(self, path: epath.Path, kind: Any) -> None:
        types = self._pyarrow.types
        if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        if not (types.is_binary(kind) or types.is_large_binary(kind)):
            raise UserError(f"{path}: image is {kind}, it needs structs with `bytes`")

    def _read_group(self, group: int) -> Any:
        number, within = self._groups[group]
        name = self._images[number]
        with self._opened(self._paths[number]) as file:
            column = file.read_row_group(within, columns=[name]).column(name)
        return column

    @contextlib.contextmanager
    def _opened(self, path: epath.Path) -> Any:
        """A parquet file; what goes wrong with it becomes a UserError."""
        from pyarrow import parquet

        try:
            with path.open("rb") as raw, parquet.ParquetFile(raw) as file:
                yield file
        except (OSError, MemoryError) as error:
            raise unreadable(path, error) from None
        # Damage shows as any of these, depending on where it lies.
        except (
            self._pyarrow.ArrowException,
            ValueError,
            KeyError,
            OverflowError,
        ) as error:
            raise UserError(f"{path}: not a readable parquet file: {reason(error)}") from None


def _class_names(metadata: dict[bytes, bytes], label: str) -> tuple[str, ...] | None:
    """The class names in the metadata that Hugging Face's datasets writes, or None."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
        return tuple(names)
    return None


def _pyarrow() -> ModuleType:
    try:
        import pyarrow
    except ImportError:
        raise UserError(
            "source parquet needs pyarrow: pip install 'shortcut_tpu[parquet]'"
        ) from None
    return pyarrow

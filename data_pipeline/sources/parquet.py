"""Parquet files of images as Hugging Face's datasets writes them.

The column `image` holds structs of `bytes` and `path`, or the bytes themselves; `label` (or
`labels`, `fine_label`) holds integers. Class names come from the schema's metadata where it has
them. Needs pyarrow, the extra `parquet`.

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
from data_pipeline.sources.base import (
    MAX_LABEL,
    EncodedImage,
    digest_of,
    expand,
    numbered_classes,
    reason,
)

_LABELS = ("label", "labels", "fine_label")
_GROUPS_IN_MEMORY = 4  # A row group of ImageNet's is a thousand images, 100 MB.


class ParquetSource:
    """The rows of parquet files, in the order of the files and within them."""

    def __init__(self, path: str):
        """Reads the files' schemas and labels.

        Args:
            path: a file, a folder of .parquet files or a pattern; local or gs://.

        Raises:
            UserError: pyarrow is missing; a file is missing or damaged, or lacks the columns; or
                a label is missing or out of range.
        """
        self._pyarrow = _pyarrow()
        folder = epath.Path(path).expanduser()
        self._paths = expand(f"{path.rstrip('/')}/*.parquet" if folder.is_dir() else path)
        splits = sorted({p.name.partition("-")[0] for p in self._paths if "-of-" in p.name})
        if len(splits) > 1:
            raise UserError(f"{path}: holds the splits {', '.join(splits)}; name one by a pattern")
        self.name = f"parquet:{path.rstrip('/').rpartition('/')[2]}"
        self._groups: list[tuple[int, int]] = []  # (file, row group within it)
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
        largest = int(self._labels.max())
        if names is not None and largest >= len(names):
            raise UserError(f"{path}: label {largest} is not one of {len(names)} classes")
        self.class_names = names or numbered_classes(self._labels)
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
            label = next((name for name in _LABELS if name in schema.names), None)
            if label is None or "image" not in schema.names:
                raise UserError(
                    f"{path}: the columns are {', '.join(schema.names)[:200]}; it needs `image` and"
                    " `label`"
                )
            self._check_image_type(path, schema.field("image").type)
            if not self._pyarrow.types.is_integer(schema.field(label).type):
                raise UserError(f"{path}: {label} is {schema.field(label).type}, it needs integers")
            sizes = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
            column = file.read(columns=[label]).column(label)
            if column.null_count or len(column) != sum(sizes):
                raise UserError(f"{path}: {label} is missing in some rows")
            labels = np.asarray(column.to_numpy())
            if labels.size and not 0 <= labels.min() <= labels.max() < MAX_LABEL:
                raise UserError(
                    f"{path}: {label} runs from {labels.min()} to {labels.max()}; it must lie in"
                    f" 0 .. {MAX_LABEL - 1} (-1 marks a split without labels)"
                )
            names = _class_names(schema.metadata or {}, label)
        return sizes, labels.astype(np.int32), names

    def _check_image_type(self, path: epath.Path, kind: Any) -> None:
        types = self._pyarrow.types
        if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        if not (types.is_binary(kind) or types.is_large_binary(kind)):
            raise UserError(f"{path}: image is {kind}, it needs structs with `bytes`")

    def _read_group(self, group: int) -> Any:
        number, within = self._groups[group]
        with self._opened(self._paths[number]) as file:
            column = file.read_row_group(within, columns=["image"]).column("image")
        return column

    @contextlib.contextmanager
    def _opened(self, path: epath.Path) -> Any:
        """A parquet file; what goes wrong with it becomes a UserError."""
        from pyarrow import parquet

        try:
            with path.open("rb") as raw, parquet.ParquetFile(raw) as file:
                yield file
        # Damage shows as any of these, depending on where it lies.
        except (
            self._pyarrow.ArrowException,
            OSError,
            ValueError,
            KeyError,
            OverflowError,
            MemoryError,
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

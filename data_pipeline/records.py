"""Writes, reads and checks latent records in ArrayRecord shards.

A record is a fixed number of bytes, so that a whole batch is decoded by one `np.frombuffer`.

Usage:
    shard = write_shard(Path("DIR/shard-00000-of-00001.array_record"), records)
    reader = LatentReader("DIR")
    batch = reader.read([17, 3, 1796])  # {"mean": [3, H, W, C] float16, "label": [3] int32}
    verify("DIR")                       # compares every shard with its checksum
"""

from collections.abc import Sequence
import contextlib
import os
from pathlib import Path
import tempfile
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from etils import epath
import numpy as np

from data_pipeline.atomic_files import failures, file_sha256, in_bucket, put
from data_pipeline.errors import UserError
from data_pipeline.manifest import FORMAT_VERSION, Field, Manifest, Shard
from data_pipeline.open_shards import OpenShards
from data_pipeline.system_errors import raise_if_system, unreadable

__all__ = [
    "FORMAT_VERSION",
    "DamagedRecordError",
    "Field",
    "LatentReader",
    "Manifest",
    "Shard",
    "file_sha256",
    "verify",
    "write_shard",
]

# One record a chunk, so that a random read decodes nothing else. Latents barely compress, and
# uncompressed bytes depend on no compressor's version.
_WRITER_OPTIONS = "group_size:1,uncompressed"
# Records that are summed at once.
_SUMMED = 256


class DamagedRecordError(UserError):
    """A record whose bytes are not those that were written.

    Attributes:
        index: the record's.
    """

    def __init__(self, message: str, index: int):
        super().__init__(message)
        self.index = index


def write_shard(path: epath.PathLike, records: np.ndarray, temporary: Path | None = None) -> Shard:
    """Writes records into an ArrayRecord file, whole or not at all.

    Args:
        path: the file, on a disk or in a bucket; it appears, or is replaced, once it is complete.
        records: [n] of a manifest's `record_dtype`.
        temporary: where it is written first, on the same disk unless in a bucket; by default
            beside it, or in the folder for temporary files.

    Raises:
        UserError: the file cannot be written.
    """
    place = epath.Path(path)
    if temporary is None:
        folder = tempfile.gettempdir() if in_bucket(place) else place.parent
        temporary = Path(folder) / f".{place.name}.tmp"
    size = records.dtype.itemsize
    raw = np.ascontiguousarray(records).view(np.uint8).data
    try:
        writer = ArrayRecordWriter(str(temporary), _WRITER_OPTIONS)
        for start in range(0, len(raw), size):
            writer.write(bytes(raw[start : start + size]))
        writer.close()
        content = (temporary.stat().st_size, file_sha256(temporary))
        shard = Shard(place.name, len(records), *content, channel_moments(records))
        put(temporary, place)
    except failures(RuntimeError) as error:
        raise UserError(f"{path}: cannot be written: {error}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return shard


def channel_moments(records: np.ndarray) -> tuple[tuple[float, ...], ...]:
    """Sums by channel over records of their latents and of the squares of these, in float64.

    A latent is drawn from a posterior, so its square is mean^2 + std^2; mirrored ones count, too.

    Args:
        records: [n] of a manifest's `record_dtype`.

    Returns:
        Two tuples of C numbers; nothing where one is not finite.
    """
    channels = records.dtype["mean"].shape[-1]
    first, second = np.zeros(channels), np.zeros(channels)
    for name in ("mean", "std", "mean_flipped", "std_flipped"):
        if name not in (records.dtype.names or ()):
            continue
        # A few at a time: in float64 a shard is four times as large.
        for start in range(0, len(records), _SUMMED):
            with np.errstate(invalid="ignore"):
                part = records[name][start : start + _SUMMED].astype(np.float64)
                part = part.reshape(-1, channels)
                if name.startswith("mean"):
                    first += part.sum(0)
                second += np.square(part).sum(0)
    if not np.isfinite([first, second]).all():
        return ()
    return tuple(first.tolist()), tuple(second.tolist())


def check_size(path: Path, shard: Shard) -> None:
    """Raises a UserError unless the shard's file is there and of the size it was written with."""
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        raise UserError(f"{path}: missing shard; encode the latents again") from None
    except OSError as error:
        raise unreadable(path, error) from None
    if found != shard.num_bytes:
        raise UserError(
            f"{path}: damaged shard: {found} bytes, the manifest says {shard.num_bytes}; encode"
            " the latents again"
        )


def verify(directory: str | os.PathLike[str]) -> Manifest:
    """Reads every shard of a folder and compares it with the checksum in the manifest.

    Returns:
        The manifest.

    Raises:
        UserError: names the first shard that is missing or differs.
    """
    manifest = Manifest.load(directory)
    for shard in manifest.shards:
        path = Path(directory) / shard.file
        check_size(path, shard)
        try:
            found = file_sha256(path)
        except OSError as error:
            raise unreadable(path, error) from None
        if found != shard.sha256:
            raise UserError(f"{path}: damaged shard: its checksum is not the manifest's")
    return manifest


class LatentReader:
    """Random access to the records of a folder; safe to share among threads.

    Opening compares the size and the record count of every shard with the manifest; `verify` reads
    them all. Every record carries a hash of its own, which each read checks.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        """Opens a folder.

        Raises:
            UserError: the manifest or a shard is missing, damaged or of another format.
        """
        self.directory = Path(directory)
        self.manifest = Manifest.load(directory)
        self._dtype = self.manifest.record_dtype
        for shard in self.manifest.shards:
            path = self.directory / shard.file
            check_size(path, shard)
            _check_count(path, shard.num_records)
        shards = self.manifest.shards
        self._records = OpenShards(
            [self.directory / shard.file for shard in shards],
            [shard.num_records for shard in shards],
        )

    def __len__(self) -> int:
        return self.manifest.num_records

    def read(self, indices: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """Reads records in the order asked for, repetitions included.

        Args:
            indices: [n] record indices in [0, len(self)).

        Returns:
            The fields by name, each [n, *field shape], contiguous and owned by the caller.

        Raises:
            UserError: an index is out of range, or a record is damaged or of another length.
        """
        indices = np.asarray(indices, dtype=np.int64)
        outside = indices[(indices < 0) | (indices >= len(self))]
        if outside.size:
            raise UserError(
                f"{self.directory}: record index {outside[0]} is out of range: there are"
                f" {len(self)} records"
            )
        keys = indices.tolist()
        try:
            raw = self._records.read(keys) if keys else []
        except RuntimeError as error:
            self._raise_for_damaged_record(keys)
            raise_if_system(self.directory, error)
            raise
        size = self._dtype.itemsize
        for key, record in zip(keys, raw, strict=True):
            if len(record) != size:
                raise UserError(
                    f"{self._path_of(key)}: record {key} has {len(record)} bytes, the manifest's"
                    f" fields make {size}"
                )
        records = np.frombuffer(b"".join(raw), dtype=self._dtype)
        return {name: np.array(records[name]) for name in self._dtype.names or ()}

    def _raise_for_damaged_record(self, keys: list[int]) -> None:
        """Raises a UserError that names the first unreadable record, if there is one."""
        for key in keys:
            try:
                self._records.read([key])
            except RuntimeError as error:
                raise_if_system(self._path_of(key), error)
                raise DamagedRecordError(
                    f"{self._path_of(key)}: record {key} is damaged: {error}", key
                ) from None

    def _path_of(self, key: int) -> Path:
        """The shard that holds a record."""
        ends = np.cumsum([shard.num_records for shard in self.manifest.shards])
        return self.directory / self.manifest.shards[int(np.searchsorted(ends, key, "right"))].file


def _check_count(path: Path, num_records: int) -> None:
    """Raises a UserError unless the file is an ArrayRecord file of so many records."""
    try:
        reader: Any = ArrayRecordReader(str(path))
        found = reader.num_records()
        reader.close()
    except (RuntimeError, MemoryError) as error:
        raise_if_system(path, error)
        raise UserError(f"{path}: damaged shard: {error}") from None
    if found != num_records:
        raise UserError(f"{path}: holds {found} records, the manifest says {num_records}")

"""Random access to the records of many ArrayRecord files, with few of them open.

Usage:
    shards = OpenShards(paths, counts)
    shards.read([17, 3, 1796])    # the bytes of each
"""

from collections import OrderedDict
from collections.abc import Sequence
import concurrent.futures
import os
import resource
import threading
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader
import numpy as np

from data_pipeline.system_errors import unreadable

_THREADS = 16
# Of the files that a process may have open, shards take a quarter.
_SHARE = 4


class OpenShards:
    """The records of files, numbered through; safe to share among threads."""

    def __init__(self, paths: Sequence[str | os.PathLike[str]], counts: Sequence[int]):
        """Opens nothing yet.

        Args:
            paths: the files.
            counts: the records of each.
        """
        self._paths = [os.fspath(path) for path in paths]
        self._ends = np.cumsum(counts, dtype=np.int64)
        self._readers: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()
        self._threads = concurrent.futures.ThreadPoolExecutor(_THREADS)

    def read(self, indices: Sequence[int] | np.ndarray) -> list[bytes]:
        """The records of these indices, in their order.

        Raises:
            RuntimeError: one is damaged, or the system failed; `raise_if_system` tells which.
            UserError: there is no memory.
        """
        indices = np.asarray(indices, np.int64)
        numbers = np.searchsorted(self._ends, indices, "right")
        places = indices - np.where(numbers, self._ends[numbers - 1], 0)
        records: list[bytes] = [b""] * len(indices)
        by_shard = np.argsort(numbers, kind="stable")
        groups = np.split(by_shard, np.flatnonzero(np.diff(numbers[by_shard])) + 1)

        def fill(mine: list[np.ndarray]) -> None:
            for rows in mine:
                found = self._read(int(numbers[rows[0]]), places[rows].tolist())
                for row, record in zip(rows.tolist(), found, strict=True):
                    records[row] = record

        # A thread takes many shards: handing each over costs as much as reading a record.
        shares = [groups[first::_THREADS] for first in range(min(len(groups), _THREADS))]
        fills = [self._threads.submit(fill, share) for share in shares]
        # All of them, or one that fails late would hand its failed reader to the next call.
        concurrent.futures.wait(fills)
        for done in fills:
            done.result()
        return records

    def _read(self, number: int, places: list[int]) -> list[bytes]:
        try:
            return self._take(number).read(places)
        except MemoryError as error:
            raise unreadable(self._paths[number], error) from None
        except RuntimeError:
            with self._lock:  # A reader that failed once fails ever after.
                self._readers.pop(number, None)
            raise

    def _take(self, number: int) -> Any:
        """An open reader; the one that was used least lately goes, once no one reads from it."""
        with self._lock:
            reader = self._readers.pop(number, None) or ArrayRecordReader(self._paths[number])
            self._readers[number] = reader
            most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _SHARE
            while len(self._readers) > max(most, _THREADS):
                self._readers.popitem(last=False)
            return reader

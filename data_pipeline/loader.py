"""Batches of latent records: row r of step s is record f(seed, s, r), on any number of hosts.

There is no iterator state: a run that starts again at step s asks for `start_step=s`.

Usage:
    per_process = batch_size // num_processes
    rows = (process * per_process, (process + 1) * per_process)
    batches = make_loader(
        "DIR", seed=0, batch_size=256, rows=rows, start_step=step, num_steps=400_000)
    for batch in batches:  # {"mean": [rows, H, W, C], "label": [rows], ...}, numpy arrays
        ...
    batches.close()
"""

import functools
import os
import sys
import threading

import grain
import numpy as np

from data_pipeline.records import DamagedRecordError, LatentReader

Batch = dict[str, np.ndarray]


def epoch_permutation(seed: int, epoch: int, num_records: int) -> np.ndarray:
    """The order in which an epoch visits the records.

    Args:
        seed: the run's seed, in [0, 2**64).
        epoch: the number of the epoch, from 0.
        num_records: how many records there are.

    Returns:
        [num_records] int64, a permutation of 0..num_records-1.
    """
    # A run must meet the same records after any upgrade. NumPy promises the raw stream of a bit
    # generator for ever, but not what Generator.permutation makes of it; a stable sort has only
    # one answer, equal keys included.
    key = np.array([seed, epoch], dtype=np.uint64)
    return np.argsort(np.random.Philox(key=key).random_raw(num_records), kind="stable")


@functools.lru_cache(maxsize=4)
def _cached_permutation(seed: int, epoch: int, num_records: int) -> np.ndarray:
    permutation = epoch_permutation(seed, epoch, num_records)
    permutation.setflags(write=False)
    return permutation


_CACHE_LOCK = threading.Lock()  # lru_cache alone lets two threads sort the same epoch.


def record_indices(
    seed: int, step: int, rows: tuple[int, int], batch_size: int, num_records: int
) -> np.ndarray:
    """The records of some rows of one step's global batch.

    Sample number p = step * batch_size + row is record p % num_records of epoch p // num_records,
    so a batch may straddle epochs, several of them where it is larger than the data set.

    Args:
        seed: the run's seed.
        step: the step, from 0.
        rows: (start, stop), the rows of the global batch asked for.
        batch_size: the rows of the global batch.
        num_records: how many records there are.

    Returns:
        [stop - start] int64 record indices.
    """
    first = step * batch_size + rows[0]
    end = step * batch_size + rows[1]
    parts = []
    while first < end:
        epoch, offset = divmod(first, num_records)
        take = min(end - first, num_records - offset)
        with _CACHE_LOCK:
            permutation = _cached_permutation(seed, epoch, num_records)
        parts.append(permutation[offset : offset + take])
        first += take
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


class BatchSource:
    """A Grain random-access source whose element `source[step]` is one process's whole batch.

    Reading a batch as one element is as fast as the records can be read: Grain's costs arise once
    a batch and not once a record.
    """

    def __init__(
        self,
        reader: LatentReader,
        *,
        seed: int,
        batch_size: int,
        rows: tuple[int, int],
        num_steps: int,
        max_corrupt: int = 0,
        corrupt: set[int] | None = None,
    ):
        """Describes the batches of a run.

        Args:
            reader: the records.
            seed: the run's seed, in [0, 2**64).
            batch_size: the rows of the global batch.
            rows: (start, stop), this process's rows of the global batch.
            num_steps: the steps of the whole run.
            max_corrupt: how many damaged records to do without. The next whole record of the data
                set stands in for one, on any number of hosts and after any restart the same.
            corrupt: gets the indices of the damaged records that were met.

        Raises:
            ValueError: the rows are not within the batch, or the seed is out of range.
        """
        if not 0 <= rows[0] < rows[1] <= batch_size:
            raise ValueError(f"rows {rows} do not lie within a batch of {batch_size}")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed {seed} is not in [0, 2**64)")
        self._reader = reader
        self._seed = seed
        self._batch_size = batch_size
        self._rows = rows
        self._num_steps = num_steps
        self._max_corrupt = max_corrupt
        self._corrupt = set() if corrupt is None else corrupt

    def __len__(self) -> int:
        return self._num_steps

    def __getitem__(self, step: int) -> Batch:
        """The rows of step `step`: every field by name, [rows, *field shape].

        Raises:
            UserError: a record is damaged, and `max_corrupt` of them were met before.
        """
        size = len(self._reader)
        indices = record_indices(self._seed, step, self._rows, self._batch_size, size)
        while True:
            try:
                return self._reader.read(indices)
            except DamagedRecordError as error:
                if error.index not in self._corrupt:
                    if len(self._corrupt) >= self._max_corrupt:
                        raise
                    self._corrupt.add(error.index)
                    print(f"warning: {error}; doing without it", file=sys.stderr, flush=True)
                indices = np.where(indices == error.index, (indices + 1) % size, indices)


def make_loader(
    directory: str | os.PathLike[str],
    *,
    seed: int,
    batch_size: int,
    rows: tuple[int, int],
    start_step: int,
    num_steps: int,
    num_threads: int = 2,
    prefetch: int = 8,
    max_corrupt: int = 0,
    corrupt: set[int] | None = None,
) -> grain.DatasetIterator[Batch]:
    """Iterates over one process's batches of steps start_step..num_steps-1.

    Args:
        directory: a folder of latent records.
        seed: the run's seed, in [0, 2**64).
        batch_size: the rows of the global batch.
        rows: (start, stop), this process's rows of it.
        start_step: the first step to give.
        num_steps: the steps of the whole run, wherever it starts.
        num_threads: threads that read ahead.
        prefetch: batches to keep ready.
        max_corrupt: how many damaged records to do without; see `BatchSource`.
        corrupt: gets the indices of the damaged records that were met.

    Returns:
        An iterator over dicts of numpy arrays; `close()` ends its threads.

    Raises:
        UserError: the records are missing or damaged.
        ValueError: the rows, the seed or the steps are out of range.
    """
    if not 0 <= start_step <= num_steps:
        raise ValueError(f"start_step {start_step} is not in [0, {num_steps}]")
    source = BatchSource(
        LatentReader(directory),
        seed=seed,
        batch_size=batch_size,
        rows=rows,
        num_steps=num_steps,
        max_corrupt=max_corrupt,
        corrupt=corrupt,
    )
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch)
    steps = grain.MapDataset.source(source)[start_step:]
    return iter(steps.to_iter_dataset(options))

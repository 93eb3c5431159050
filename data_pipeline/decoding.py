"""Reads sources as batches of pixels; separate processes decode image files.

Usage:
    with open_reader(source, Preprocessing("adm", 256), workers=8) as reader:
        for batch in reader.batches([range(0, 32), range(32, 64)]):
            batch.images, batch.labels, batch.rejected
"""

from collections import deque
from collections.abc import Iterable, Iterator
import concurrent.futures
from concurrent.futures.process import BrokenProcessPool
import contextlib
import dataclasses
import multiprocessing
from multiprocessing.connection import wait
import os
import signal
import threading
from typing import Protocol

import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.images import Preprocessing, RejectedImageError
from data_pipeline.sources import EncodedImage, EncodedSource, Source
from data_pipeline.system_errors import unreadable

# Images a task: enough to make the cost of passing one on small, few enough to share out evenly.
_CHUNK = 16
_MAX_WORKERS = 32
# Images at a time where each is looked at and forgotten.
_LOOK = 256


@dataclasses.dataclass(frozen=True)
class Rejected:
    """An image that was left out.

    Attributes:
        index: its number in the source.
        name: its name there.
        reason: why.
    """

    index: int
    name: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Batch:
    """Consecutive images of a source.

    Attributes:
        first: the number of the first.
        images: [n, H, W, C] uint8, or float32 in [-1, 1]; zeros where one was rejected.
        labels: [n] int32.
        rejected: those that were.
    """

    first: int
    images: np.ndarray
    labels: np.ndarray
    rejected: tuple[Rejected, ...] = ()

    def __len__(self) -> int:
        return len(self.images)


class Reader(Protocol):
    """Batches of a source."""

    def batches(self, ranges: Iterable[range]) -> Iterator[Batch]:
        """The images of each range, in their order; the next ones are read ahead."""


def default_workers() -> int:
    """A decoding process for every processor, within reason."""
    return min(os.cpu_count() or 1, _MAX_WORKERS)


@contextlib.contextmanager
def open_reader(
    source: Source | EncodedSource, preprocessing: Preprocessing, workers: int
) -> Iterator[Reader]:
    """Opens a source for reading, and ends what was started for it.

    Args:
        source: arrays, or image files.
        preprocessing: what becomes of image files.
        workers: processes that decode them; 0 for none but this one.
    """
    if isinstance(source, Source):
        yield _ArrayReader(source)
        return
    with contextlib.ExitStack() as stack:
        processes = None
        if workers:
            processes = concurrent.futures.ProcessPoolExecutor(
                workers,
                # A fork of a process with threads, and JAX has some, may hang.
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_start_worker,
            )
            stack.callback(processes.shutdown, wait=True, cancel_futures=True)
        # Each thread reads a chunk and waits for its pixels, so some read while others wait. One
        # alone where it decodes too: catching Pillow's warnings is not for several.
        threads = concurrent.futures.ThreadPoolExecutor(2 * workers or 1)
        stack.callback(threads.shutdown, wait=True, cancel_futures=True)
        yield _DecodingReader(source, preprocessing, threads, processes, 3 * workers or 1)


def all_grey(source: EncodedSource, preprocessing: Preprocessing, workers: int) -> bool:
    """Whether every picture of a source is grey; all are looked at, to the first in colour."""
    parts = [(range(min(_CHUNK, len(source))), 0), (range(_CHUNK, len(source)), workers)]
    for numbers, processes in parts:
        chunks = [numbers[start : start + _LOOK] for start in range(0, len(numbers), _LOOK)]
        with open_reader(source, preprocessing, processes if chunks else 0) as reader:
            for batch in reader.batches(chunks):
                if (batch.images != batch.images[..., :1]).any():
                    return False
    return True


class _ArrayReader:
    """The batches of a source that is in memory."""

    def __init__(self, source: Source):
        self._source = source

    def batches(self, ranges: Iterable[range]) -> Iterator[Batch]:
        for numbers in ranges:
            images, labels = self._source.read(numbers.start, numbers.stop)
            yield Batch(numbers.start, images, labels)


class _DecodingReader:
    """The batches of a source of image files."""

    def __init__(
        self,
        source: EncodedSource,
        preprocessing: Preprocessing,
        threads: concurrent.futures.Executor,
        processes: concurrent.futures.Executor | None,
        chunks_ahead: int,
    ):
        self._source = source
        self._preprocessing = preprocessing
        self._threads = threads
        self._processes = processes
        self._chunks_ahead = chunks_ahead

    def batches(self, ranges: Iterable[range]) -> Iterator[Batch]:
        waiting: deque[list[concurrent.futures.Future[Batch]]] = deque()
        for numbers in ranges:
            starts = range(numbers.start, numbers.stop, _CHUNK)
            waiting.append(
                [
                    self._threads.submit(self._chunk, start, min(start + _CHUNK, numbers.stop))
                    for start in starts
                ]
            )
            if sum(map(len, waiting)) > self._chunks_ahead + len(waiting[0]):
                yield _joined(waiting.popleft())
        while waiting:
            yield _joined(waiting.popleft())

    def _chunk(self, start: int, stop: int) -> Batch:
        encoded = self._source.read_encoded(start, stop)
        if self._processes is None:
            images, reasons = decode(self._preprocessing, encoded)
        else:
            try:
                task = self._processes.submit(decode, self._preprocessing, encoded)
                images, reasons = task.result()
            except BrokenProcessPool:
                raise UserError(
                    f"a decoding process was killed (out of memory?) at {encoded[0].name} to"
                    f" {encoded[-1].name} or near; start the command again, perhaps with fewer"
                    " --workers"
                ) from None
        rejected = tuple(
            Rejected(index, image.name, reason)
            for index, image, reason in zip(range(start, stop), encoded, reasons, strict=True)
            if reason is not None
        )
        return Batch(start, images, np.array([e.label for e in encoded], np.int32), rejected)


def decode(
    preprocessing: Preprocessing, encoded: list[EncodedImage]
) -> tuple[np.ndarray, list[str | None]]:
    """Decodes images.

    Returns:
        [n, size, size, channels], zeros where one was rejected, and for each why it was, or None.

    Raises:
        UserError: the system failed, which is no verdict on an image.
    """
    size = preprocessing.size
    images = np.zeros((len(encoded), size, size, preprocessing.channels), preprocessing.dtype)
    reasons: list[str | None] = [image.problem for image in encoded]
    for row, image in enumerate(encoded):
        if image.problem is None:
            try:
                images[row] = preprocessing(image.data)
            except RejectedImageError as error:
                reasons[row] = str(error)
            except (OSError, MemoryError) as error:
                raise unreadable(image.name, error) from None
    return images, reasons


def _joined(chunks: list[concurrent.futures.Future[Batch]]) -> Batch:
    parts = [chunk.result() for chunk in chunks]
    return Batch(
        parts[0].first,
        np.concatenate([part.images for part in parts]),
        np.concatenate([part.labels for part in parts]),
        tuple(rejected for part in parts for rejected in part.rejected),
    )


def _start_worker() -> None:
    """Leaves Ctrl-C to the parent, and ends with it however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)

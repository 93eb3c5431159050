"""Fetches batches to the devices in a thread, while steps run."""

from collections.abc import Callable, Iterator
import queue
import threading
from typing import Any

_POLL_SECONDS = 0.1


class Prefetch(Iterator[Any]):
    """Keeps the next batches' transfers under way; leaving the block ends the thread."""

    def __init__(self, batches: Iterator[Any], put: Callable[[Any], Any], depth: int = 2):
        """Begins at once.

        Args:
          batches: batches on the host; what they raise is raised where their batch would be due.
          put: starts a batch's transfer.
          depth: how many transfers to keep under way.
        """
        self._batches = batches
        self._put = put
        self._ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(depth)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._fill, name="prefetch", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Prefetch":
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def __next__(self) -> Any:
        batch, error = self._ready.get()
        if error is not None:
            # Whoever asks again is told again.
            self._ready.put((None, error))
            raise error
        return batch

    def _fill(self) -> None:
        try:
            for batch in self._batches:
                self._offer(self._put(batch), None)
                if self._ended.is_set():
                    return
            self._offer(None, StopIteration())
        except BaseException as error:
            self._offer(None, error)

    def _offer(self, batch: Any, error: BaseException | None) -> None:
        while not self._ended.is_set():
            try:
                self._ready.put((batch, error), timeout=_POLL_SECONDS)
                return
            except queue.Full:
                continue

"""Batches on their way to the devices."""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any


class Prefetch(Iterator[Any]):
    """Keeps the next batches' transfers under way while a step runs."""

    def __init__(self, batches: Iterator[Any], put: Callable[[Any], Any], depth: int = 2):
        """Wraps an iterator.

        Args:
          batches: batches on the host.
          put: starts a batch's transfer and returns at once.
          depth: how many transfers to keep under way.
        """
        self._batches = batches
        self._put = put
        self._depth = depth
        self._ready: deque[Any] = deque()

    def __next__(self) -> Any:
        while len(self._ready) < self._depth:
            batch = next(self._batches, None)
            if batch is None:
                break
            self._ready.append(self._put(batch))
        if not self._ready:
            raise StopIteration
        return self._ready.popleft()

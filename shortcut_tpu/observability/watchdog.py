"""Ends a process that hangs, after printing the stacks of its threads.

On a pod one host that hangs stops all, and no exception ever comes. The watch is a thread of C, so
that no lock of Python can hold it up.

Usage:
  with Watchdog(seconds=1800) as watchdog:
    for step in ...:
      watchdog.alive()
"""

import faulthandler

_STDERR = 2


class Watchdog:
    """Unless `alive` is called every so many seconds: all stacks on stderr, and exit status 1."""

    def __init__(self, seconds: float):
        """Starts the watch; 0 seconds is for no watch."""
        self._seconds = seconds
        self.alive()

    def alive(self, *_: object) -> None:
        """Starts the time anew."""
        if self._seconds:
            faulthandler.dump_traceback_later(self._seconds, exit=True, file=_STDERR)

    def __enter__(self) -> "Watchdog":
        return self

    def __exit__(self, *_: object) -> None:
        faulthandler.cancel_dump_traceback_later()

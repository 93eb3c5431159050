"""Ends a process that hangs, after printing the stacks of its threads.

On a pod one host that hangs stops all, and no exception ever comes. The watch is a thread of C, so
that no lock of Python can hold it up.

Usage:
  with Watchdog(seconds=1800) as watchdog:
    for step in ...:
      watchdog.alive()
"""

import faulthandler

import jax

_STDERR = 2
# JAX says the one when a program goes to the compiler, and the other when it comes back.
_LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"
_COMPILED = "/jax/core/compile/backend_compile_duration"
# Stable Diffusion's decoder takes a TPU's compiler more than a quarter of an hour.
_TIMES_WHILE_COMPILING = 4


class Watchdog:
    """Unless `alive` is called every so many seconds: all stacks on stderr, and exit status 1.

    Each program that is compiled counts as alive before and after, and has four times as long.
    """

    def __init__(self, seconds: float):
        """Starts the watch; 0 seconds is for no watch."""
        self._seconds = seconds
        jax.monitoring.register_event_duration_secs_listener(self._heard)
        self.alive()

    def alive(self, *_: object) -> None:
        """Starts the time anew."""
        self._end_after(self._seconds)

    def _heard(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == _LOWERED:
            self._end_after(_TIMES_WHILE_COMPILING * self._seconds)
        elif event == _COMPILED:
            self.alive()

    def _end_after(self, seconds: float) -> None:
        if seconds:
            faulthandler.dump_traceback_later(seconds, exit=True, file=_STDERR)

    def __enter__(self) -> "Watchdog":
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._heard)
        faulthandler.cancel_dump_traceback_later()

"""Finds the host that is slower than the others.

Steps are synchronous, so that every host takes the same time for one: the slowest one's. What
differs is how much of it a host is busy itself and does not wait for devices: for its input, and on
the processor with the loop (starting steps, moving batches). While that is less than a step it
costs nothing; a host on which it grows is the next to hold all up. A slow chip does not show here,
for its host waits as the others do: that takes a profile of every host.

Usage, on every process at the same step:
  scalars = spread(busy_seconds, step_seconds)
"""

from jax.experimental import multihost_utils
import numpy as np


def spread(busy_seconds: float, step_seconds: float) -> dict[str, float]:
    """Gathers every host's busy time of a step, and compares the longest with the median.

    Returns:
      `perf/straggler_spread`, the difference as a share of the step, and `perf/straggler_host`, the
      index of the process that had the longest.
    """
    gathered = multihost_utils.process_allgather(np.float32(busy_seconds))
    return compare(np.atleast_1d(gathered), step_seconds)


def compare(busy_seconds: np.ndarray, step_seconds: float) -> dict[str, float]:
    """The scalars of `spread`, from the busy seconds of all hosts [processes]."""
    slowest = int(np.argmax(busy_seconds))
    behind = float(busy_seconds[slowest] - np.median(busy_seconds))
    return {
        "perf/straggler_spread": behind / step_seconds,
        "perf/straggler_host": float(slowest),
    }

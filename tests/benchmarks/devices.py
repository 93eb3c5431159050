"""The same step laid out over 1, 2, 4 and 8 virtual CPU devices: what partitioning costs.

All devices share this machine's cores, so the work is the same and the time ought to be, too. Each
number of devices has a process of its own, for JAX is told the number when it starts.

Usage, of one such process, which trains as many steps as each line of its input says:
  $ JAX_NUM_CPU_DEVICES=4 python -m tests.benchmarks.devices
"""

from collections.abc import Iterator
import contextlib
import subprocess
import sys

import jax

from launch.local_pod import host_environment
from tests.benchmarks.comparison import Bar, Comparison, Options, in_turns
from tests.benchmarks.small import Run, small_config

COUNTS = (2, 4, 8)
STEPS = 2


def worker() -> None:
    """Writes a line when it is ready, and seconds a step for each line read."""
    run = Run(small_config(unroll=1), jax.devices())
    print("ready", flush=True)
    for line in sys.stdin:
        print(run.seconds_a_step(int(line)), flush=True)


class Worker:
    """A process with so many devices."""

    def __init__(self, process: subprocess.Popen[str]):
        self._process = process
        self._read()

    def seconds_a_step(self) -> float:
        assert self._process.stdin is not None
        print(STEPS, file=self._process.stdin, flush=True)
        return float(self._read())

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a process of the benchmark ended; its error stands above")
        return line


@contextlib.contextmanager
def started(count: int) -> Iterator[Worker]:
    """A worker that is ready, and ends with the block."""
    environment = host_environment(count)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.devices"],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Worker(process)
    finally:
        process.kill()
        process.communicate()


def measure(options: Options) -> list[Comparison]:
    found = []
    with started(1) as alone:
        for count in COUNTS:
            with started(count) as several:
                times = in_turns(several.seconds_a_step, alone.seconds_a_step, options.rounds)
            name = f"step on {count} virtual devices over on 1, same batch"
            found.append(Comparison(name, "s", *times, Bar(high=1.25)))
    return found


if __name__ == "__main__":
    worker()

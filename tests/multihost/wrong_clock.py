"""Runs a module with a clock that is wrong: wrong_clock.py SECONDS_FILE MODULE ARGUMENTS.

By how much stands in the file, which may change at any time. It is the clock as Python sees it,
`time.time`; what measures intervals, `time.monotonic`, is right, as it is where somebody sets a
clock back.
"""

from pathlib import Path
import runpy
import sys
import time

offset, right = Path(sys.argv[1]), time.time_ns


def wrong_ns() -> int:
    return right() + int(float(offset.read_text() or 0) * 1e9)


time.time_ns = wrong_ns
time.time = lambda: wrong_ns() / 1e9
sys.argv = sys.argv[2:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)

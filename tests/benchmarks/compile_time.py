"""Compiling a step four times as deep: layers in a scan are compiled once, written out each."""

import jax

from shortcut_tpu.training.experiment import Experiment
from tests.benchmarks.comparison import Bar, Comparison, Options, in_turns, seconds
from tests.benchmarks.small import abstract_batch, small_config

SHALLOW, DEEP = 4, 16
# Compiling is steady, and slow.
ROUNDS = 3


def compile_seconds(depth: int, *, unrolled: bool) -> float:
    """Tracing and compiling the step from nothing."""
    config = small_config(depth=depth, unroll=depth if unrolled else 1)
    experiment = Experiment.from_config(config, jax.devices()[:1])
    arguments = experiment.abstract_state, abstract_batch(experiment)
    return seconds(lambda: experiment.train_step.lower(*arguments).compile() and None)


def measure(options: Options) -> list[Comparison]:
    name = f"compiling {DEEP} layers over {SHALLOW}"
    found = []
    for unrolled, bar in ((False, Bar(high=1.1)), (True, Bar())):
        times = in_turns(
            lambda unrolled=unrolled: compile_seconds(DEEP, unrolled=unrolled),
            lambda unrolled=unrolled: compile_seconds(SHALLOW, unrolled=unrolled),
            1 if unrolled else min(ROUNDS, options.rounds),
        )
        found.append(
            Comparison(f"{name}, {'written out' if unrolled else 'scanned'}", "s", *times, bar)
        )
    return found

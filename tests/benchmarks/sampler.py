"""Sampling in 128 steps beside sampling in one, and one step beside a bare forward pass."""

from collections.abc import Callable
import functools
from typing import Any

import jax
import numpy as np

from data_pipeline.autoencoders import load_autoencoder
from shortcut_tpu.evaluation.generator import make_generator
from shortcut_tpu.training.experiment import Experiment
from tests.benchmarks.comparison import Bar, Comparison, Options, in_turns, seconds
from tests.benchmarks.small import random_batch, small_config

STEPS = 128
CALLS = 32
ROWS = 16


def measure(options: Options) -> list[Comparison]:
    config = small_config(depth=2, unroll=2).copy_and_resolve_references()
    config.batch_size = ROWS
    experiment = Experiment.from_config(config, jax.devices()[:1])
    generator = make_generator(experiment, load_autoencoder("identity"))
    batch = random_batch(config)
    params = experiment.init_state().emas["evaluation"]
    sample = (params, np.arange(ROWS, dtype=np.uint32), batch["label"])
    many = functools.partial(generator.program(STEPS), *sample)
    one = functools.partial(generator.program(1), *sample)
    forward = functools.partial(
        jax.jit(experiment.placed(experiment.model.apply)),
        *(params, batch["mean"], np.zeros(ROWS, np.float32), np.ones(ROWS, np.float32)),
        batch["label"],
    )
    for program in (many, one, forward):
        seconds(program)

    def mean(program: Callable[[], Any], calls: int) -> float:
        return sum(seconds(program) for _ in range(calls)) / calls

    steps, alone = in_turns(lambda: seconds(many) / STEPS, lambda: mean(one, STEPS), options.rounds)
    sampled, passed = in_turns(
        lambda: mean(one, CALLS), lambda: mean(forward, CALLS), options.rounds
    )
    return [
        Comparison(
            f"a step of {STEPS} over sampling in one, an image",
            "s",
            [found / ROWS for found in steps],
            [found / ROWS for found in alone],
            Bar(0.95, 1.05),
        ),
        Comparison(
            "sampling in one step over a forward pass, an image",
            "s",
            [found / ROWS for found in sampled],
            [found / ROWS for found in passed],
            Bar(0.9, 1.1),
        ),
    ]

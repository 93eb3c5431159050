"""What a log interval says of speed: times by kind, utilisation, hosts that are slower."""

import types

import numpy as np
import pytest

from shortcut_tpu.observability import stragglers
from shortcut_tpu.observability.clock import CHECKPOINT, EVALUATION, INPUT, START, STEP, Clock
from shortcut_tpu.observability.speed import Speed, utilisation


class Time:
    """Passes when it is told to."""

    def __init__(self):
        self.wall = self.cpu = 0.0

    def passes(self, wall, cpu=0.0):
        self.wall += wall
        self.cpu += cpu

    def clock(self):
        return Clock(lambda: self.wall, lambda: self.cpu)


def test_each_moment_belongs_to_one_kind():
    time = Time()
    clock = time.clock()
    time.passes(5)
    with clock.spending(INPUT):
        time.passes(1, cpu=0.5)
    # The first step compiles.
    time.passes(20)
    clock.stepping()
    time.passes(2)
    with clock.spending(EVALUATION):
        time.passes(7)
        with clock.spending(CHECKPOINT):
            time.passes(3)
        clock.stepping()
        time.passes(1)
    time.passes(4, cpu=1)
    found = clock.read()
    expected = {START: 25, INPUT: 1, STEP: 6, EVALUATION: 8, CHECKPOINT: 3}
    assert {kind: found.wall[kind] for kind in expected} == expected
    assert sum(found.wall.values()) == time.wall
    assert (found.cpu[INPUT], found.cpu[STEP]) == (0.5, 1)


def test_an_interval_is_of_steps_and_their_input_alone():
    time = Time()
    clock = time.clock()
    devices = np.array([types.SimpleNamespace(device_kind="TPU v5 lite")] * 2)
    mesh = types.SimpleNamespace(devices=devices, size=2)
    speed = Speed(clock, 100, batch_size=64, model_flops=197e12, mesh=mesh)
    time.passes(60)
    clock.stepping()
    for _ in range(10):
        with clock.spending(INPUT):
            time.passes(0.5)
        time.passes(1.5, cpu=0.1)
    with clock.spending(CHECKPOINT):
        time.passes(3)
    with clock.spending(EVALUATION):
        time.passes(100)
    found = speed.interval(110)
    assert found == pytest.approx(
        {
            "perf/step_seconds": 2,
            "perf/images_per_second": 32,
            "perf/input_wait": 0.25,
            "perf/checkpoint_block_seconds": 3,
            # The work of one chip-second in two seconds on two chips.
            "perf/model_tflops_per_second": 98.5,
            "perf/mfu": 0.25,
            "perf/straggler_spread": 0,
            "perf/straggler_host": 0,
        }
    )
    time.passes(6)
    assert speed.interval(112)["perf/step_seconds"] == pytest.approx(3)


def test_processors_have_no_published_peak():
    assert utilisation(3e12, 4, "cpu") == {"perf/model_tflops_per_second": 3}
    assert utilisation(918e12, 2, "TPU v6 lite")["perf/mfu"] == pytest.approx(0.5)


def test_the_slowest_host_is_compared_with_the_median():
    found = stragglers.compare(np.array([0.1, 0.2, 0.5, 0.2]), step_seconds=1.5)
    assert found == pytest.approx({"perf/straggler_spread": 0.2, "perf/straggler_host": 2})

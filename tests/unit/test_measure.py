"""What `measure` times, and what it says of it."""

import json
import types

import jax
import pytest

from shortcut_tpu import measure
from shortcut_tpu.measure import Timing
from shortcut_tpu.objectives import OBJECTIVES


def test_all_programs_of_a_run_are_timed(tiny_config, capsys, monkeypatch):
    """On all devices, laid out as the run is; each is compiled once and called in rounds."""
    monkeypatch.setattr(measure, "_ROUND_SECONDS", 0.1)
    with tiny_config.unlocked():
        tiny_config.mesh.fsdp = -1
        tiny_config.evaluation.batch_size = 12
    figures = measure.measure(tiny_config, rounds=2, many=3)
    names = [program["name"] for program in figures["programs"]]
    assert names == [
        "train step",
        "the same, flow matching",
        "network, one pass",
        "sampling, 1 step",
        "sampling, 3 steps",
    ]
    assert figures["mesh"]["fsdp"] == figures["devices"] == jax.device_count() == 8
    for program in figures["programs"]:
        assert len(program["seconds"]) == 2
        assert program["rows_per_second"] == pytest.approx(
            program["rows"] / program["median_seconds"]
        )
        # A processor has no published peak.
        assert "mfu" not in program
        assert program["limit_seconds"] is None
    # 12 samples, made up to as many as the devices can share.
    assert [program["rows"] for program in figures["programs"]] == [32, 32, 16, 16, 16]
    shortcut, flow, once, one, three = (p["model_flops"] for p in figures["programs"])
    assert one == once == three / 3
    assert 1 < shortcut / flow < 1.5
    assert set(figures["ratios"]) == {
        "train step over flow matching's",
        "a step of 3 over sampling in one",
        "sampling in one step over a pass",
    }
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "8 cpu devices (data 1, fsdp 8, stride 1, tensor 1)"
    assert sum(line.startswith("train step: compiled in") for line in said) == 1
    json.dumps(figures)


def test_each_objective_s_arguments_can_be_made(tiny_config):
    """Pairs, a teacher, averages of its own: whatever its step takes."""
    for name in OBJECTIVES:
        with tiny_config.unlocked():
            tiny_config.objective.name = name
        [(first, candidate), *_] = measure.candidates(tiny_config, many=2)
        assert first == measure.STEP
        made = jax.eval_shape(lambda c=candidate: measure._arguments(c))
        for ours, wanted in zip(
            jax.tree.leaves(made), jax.tree.leaves(candidate.arguments), strict=True
        ):
            assert (ours.shape, ours.dtype) == (wanted.shape, wanted.dtype)


def test_the_table_sets_times_beside_limits(monkeypatch):
    device = types.SimpleNamespace(device_kind="TPU v5e")
    monkeypatch.setattr(jax, "devices", lambda: [device] * 4)
    limits = {"roofline_seconds": {"mxu": 0.001, "hbm": 0.005}, "bound_by": "hbm"}
    timing = Timing("train step", 256, int(4 * 197e12 * 0.002), [0.012, 0.009, 0.010], limits)
    assert timing.median == 0.010
    assert timing.figures()["mfu"] == pytest.approx(0.2)
    head, line = measure.table([timing])
    assert line.endswith("20.0%  5 ms, HBM, 50%")
    assert len(head) <= 105
    told = Timing("train step", 256, 10**12, [0.010], limits | {"estimated_seconds": 0.008})
    assert measure.table([told])[1].endswith("  5 ms, HBM, 50%; 8 ms, 80%")
    without = Timing("train step", 256, 10**12, [0.012], {})
    assert measure.table([without])[1].endswith("  -")


def test_ratios_are_of_what_is_there():
    def timing(seconds):
        return Timing("", 8, 1, [seconds], {})

    timings = {
        measure.FORWARD: timing(0.010),
        measure.sampling(1): timing(0.011),
        measure.sampling(128): timing(1.28),
    }
    assert measure.ratios(timings, 128) == pytest.approx(
        {
            "a step of 128 over sampling in one": 1.28 / 128 / 0.011,
            "sampling in one step over a pass": 1.1,
        }
    )

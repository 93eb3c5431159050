"""Where a run's time went, over all its starts."""

import json

from etils import epath
import pytest

from shortcut_tpu.observability import goodput as goodput_lib
from shortcut_tpu.observability.clock import CHECKPOINT, EVALUATION, INPUT, START, STEP
from shortcut_tpu.observability.goodput import BETWEEN, LOST, Goodput, Start, by_kind, recorded


def start(began, seconds, first_step, step):
    return Start(began, began + sum(seconds.values()), first_step, step, seconds)


def test_steps_that_no_later_start_went_on_from_are_lost():
    """Killed at step 100 and back to 80; killed at 120, and with checkpoint 80 damaged to 60."""
    starts = [
        start(0, {START: 30, STEP: 100, INPUT: 10}, 0, 100),
        start(150, {START: 20, STEP: 40, EVALUATION: 10}, 80, 120),
        start(225, {START: 20, STEP: 50}, 60, 110),
    ]
    assert by_kind(starts) == pytest.approx(
        {STEP: 60 + 0 + 50, LOST: 40 + 40, START: 70, BETWEEN: 10 + 5, INPUT: 10, EVALUATION: 10}
    )


def test_a_run_goes_on_counting_after_a_restart(tmp_path, monkeypatch):
    workdir, clock = epath.Path(tmp_path), [1000.0]
    monkeypatch.setattr(goodput_lib.time, "time", lambda: clock[0])
    first = Goodput(workdir, 0)
    clock[0] = 1100
    first.record(50, {START: 50, STEP: 50})
    assert first.share() == pytest.approx(0.5)
    first.close()
    # It was killed while it wrote a line of another kind.
    with (tmp_path / goodput_lib.FILE).open("a") as file:
        file.write('[1, 2]\n{"began": 5}\n{"began"')

    clock[0] = 1150
    second = Goodput(workdir, 40)
    clock[0] = 1200
    second.record(70, {START: 20, STEP: 30, CHECKPOINT: 0})
    second.close()
    # 40 of the first 50 seconds of steps, and 30, of 200.
    assert second.share() == pytest.approx(0.35)
    assert second.summary() == (
        "goodput 35 %: start and compile 35 %, between starts 25 %, lost steps 5 %"
    )
    lines = (tmp_path / goodput_lib.FILE).read_text().splitlines()
    assert [json.loads(line)["first_step"] for line in lines] == [0, 40]
    assert recorded(workdir) == [
        Start(1000, 1100, 0, 50, {START: 50, STEP: 50}),
        Start(1150, 1200, 40, 70, {START: 20, STEP: 30, CHECKPOINT: 0}),
    ]


def test_a_disk_that_refuses_costs_only_the_record(tmp_path, capsys):
    workdir = epath.Path(tmp_path / "gone")
    goodput = Goodput(workdir, 0)
    goodput.record(1, {START: 1, STEP: 3})
    goodput.close()
    assert f"warning: {workdir / 'goodput.jsonl'}: not written: " in capsys.readouterr().err
    assert goodput.share() == 0.75

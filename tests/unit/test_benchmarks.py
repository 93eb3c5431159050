"""The arithmetic behind the benchmarks' table, and that each can be loaded. None is timed here."""

import math

import pytest

from tests.benchmarks import comparison, loader, run, small
from tests.benchmarks.comparison import Bar, Comparison, Options, Skipped


def test_both_are_measured_as_often_and_neither_is_always_first():
    order = []
    ours, other = comparison.in_turns(
        lambda: order.append("a") or len(order), lambda: order.append("b") or len(order), rounds=3
    )
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert ours == [1, 4, 5]
    assert other == [2, 3, 6]


def test_the_ratio_is_the_median_of_the_rounds():
    """A disturbed round does not show, and one that slows both alike is no disturbance."""
    found = Comparison("a over b", "s", ours=[1, 20, 9], other=[2, 40, 1], bar=Bar(high=0.5))
    assert found.ratios == [0.5, 0.5, 9]
    assert found.ratio == 0.5
    assert found.holds
    figures = found.figures()
    assert (figures["lowest"], figures["ratio"], figures["highest"]) == (0.5, 0.5, 9)
    assert figures["bar"] == {"high": 0.5}


@pytest.mark.parametrize(
    ("bar", "text", "inside", "outside"),
    [
        (Bar(high=1.5), "<= 1.5", 1.5, 1.51),
        (Bar(low=0.8), ">= 0.8", 0.8, 0.79),
        (Bar(0.95, 1.05), "0.95 to 1.05", 1.0, 0.9),
        (Bar(), "-", 1e9, math.nan),
    ],
)
def test_bars(bar, text, inside, outside):
    assert str(bar) == text
    assert bar.holds(inside)
    assert not bar.holds(outside)


def test_the_table_names_what_does_not_hold():
    rows = [
        Comparison("fast over slow", "s", [1.0], [4.0], Bar(high=0.5)),
        Comparison("slow over fast", "s", [4.0], [1.0], Bar(high=0.5)),
        Comparison("no bar", "s", [4.0], [1.0]),
    ]
    head, *lines = comparison.table(rows).splitlines()
    assert head.split()[-2:] == ["bar", "holds"]
    assert [line.split()[-1] for line in lines] == ["yes", "NO", "-"]
    assert max(map(len, (head, *lines))) <= 140


@pytest.mark.parametrize("name", run.NAMES)
def test_each_benchmark_can_be_loaded(name):
    module = run.load(name)
    assert callable(module.measure)
    assert module.__doc__


@pytest.mark.parametrize("name", ["encode", "official", "official_pod"])
def test_what_needs_a_file_says_so(name, tmp_path):
    with pytest.raises(Skipped, match=r"give --(autoencoder|official)="):
        run.load(name).measure(Options(tmp_path))


def test_one_runs_at_a_small_size(tmp_path, monkeypatch):
    monkeypatch.setattr(loader, "NUM_RECORDS", 256)
    monkeypatch.setattr(loader, "BATCH_SIZE", 32)
    monkeypatch.setattr(loader, "NUM_STEPS", 3)
    [found] = loader.measure(Options(tmp_path, rounds=1))
    assert found.bar == Bar(low=0.8)
    assert found.ratio == found.ours[0] / found.other[0] > 0


def test_the_small_run_compares_like_with_like():
    """Rows that guidance adds, or an average more, would count as the objective's."""
    shortcut, flow = (small.small_config(name) for name in ("shortcut", "flow_matching"))
    assert shortcut.objective.shortcut.guidance == 1
    assert dict(shortcut.emas) == dict(flow.emas) == {"evaluation": 0.999}
    assert shortcut.model == flow.model

"""What a run tells people while it trains: console, bars, sheets, TensorBoard's special tabs."""

import datetime
import io
import re
import sys

from etils import epath
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from configs import digits
from data_pipeline import progress
from data_pipeline.progress import counted, progress_bar, terminal_bars
from shortcut_tpu.cli import config as config_lib
from shortcut_tpu.cli.console import progress_line, where_things_are
from shortcut_tpu.evaluation.protocols import get_protocol
from shortcut_tpu.observability import dashboard, sheets
from shortcut_tpu.observability.clock import Clock
from shortcut_tpu.observability.outlook import Outlook
from shortcut_tpu.observability.parameters import arrays, markdown, overview
from shortcut_tpu.observability.writers import concerned

METRICS = {
    "train/loss": 0.213,
    "train/grad_norm": 0.28,
    "train/skipped": 0.0,
    "perf/images_per_second": 3368.4,
    "perf/input_wait": 0.004,
}


def test_a_line_fits_a_narrow_terminal_and_names_only_trouble():
    line = progress_line(1200, 5000, METRICS, 0.0381)
    assert line == (
        "step 1200/5000  24%  loss 0.2130  grad 0.280  38.1 ms/step  3368 img/s  left 0:02:25"
    )
    assert "img/s  MFU 42%  left" in progress_line(9, 10, METRICS | {"perf/mfu": 0.42}, 1)
    trouble = METRICS | {"perf/input_wait": 0.25, "train/skipped": 3.0}
    assert progress_line(1200, 5000, trouble, 12.5).endswith(
        "12500 ms/step  3368 img/s  left 13:11:40  input wait 25%  3 updates left out"
    )


def test_the_end_names_only_what_there_is(tmp_path):
    workdir = epath.Path(tmp_path)
    before = where_things_are(workdir, makes_images=True)
    (workdir / "evaluations").mkdir()
    after = where_things_are(workdir, makes_images=True)
    assert all(str(workdir) in line for line in after)
    assert [line.split()[-1] for line in after if line not in before] == [f"{workdir}/evaluations"]
    of_policy = " ".join(where_things_are(workdir, makes_images=False))
    assert "rollout" in of_policy and "sample" not in of_policy and "evaluate" not in of_policy


def test_parameters_are_counted_by_module_and_listed_whole():
    params = {
        "blocks": {"qkv": {"kernel": np.zeros((2, 3, 4)), "bias": np.zeros((2, 4))}},
        "final": {"kernel": np.zeros((4, 2), np.float32)},
    }
    table = arrays(params)
    rows = [re.split(r"\s{2,}", line) for line in overview(table)]
    assert rows == [
        ["module", "arrays", "parameters"],
        ["blocks", "2", "32", "80.0%"],
        ["final", "1", "8", "20.0%"],
        ["all", "3", "40", "100.0%"],
    ]
    assert "| blocks.qkv.kernel | 2 x 3 x 4 | float64 | 24 |" in markdown(table)
    assert "| final.kernel | 4 x 2 | float32 | 8 |" in markdown(table)


def test_hyperparameters_are_those_of_what_trains():
    config = config_lib.load("digits").copy_and_resolve_references()
    config.objective.name = "get"
    found = dashboard.hyperparameters(config)
    groups = {".".join(key.split(".")[:2]) for key in found if key.count(".") == 2}
    assert groups == {"objective.equilibrium", "model.equilibrium"}
    assert found["objective.name"] == "get"
    assert found["evaluation.steps"] == "[1, 4, 32]"
    assert {type(value) for value in found.values()} <= {bool, int, float, str}


def test_custom_scalars_are_laid_out_as_tensorboard_reads_them():
    from tensorboard.plugins.custom_scalar import layout_pb2

    tag, value, metadata = dashboard.layout(get_protocol("adm").distances)
    assert (tag, metadata.plugin_data.plugin_name) == ("custom_scalars__config__", "custom_scalars")
    layout = layout_pb2.Layout.FromString(value.item())
    evaluation = layout.category[0]
    assert [chart.title for chart in evaluation.chart] == [
        f"{name} by sampling steps"
        for name in ("fid", "sfid", "inception_score", "precision", "recall")
    ]
    # TensorBoard searches; a distance must not draw those whose name ends like its own.
    (pattern,) = evaluation.chart[0].multiline.tag
    assert [bool(re.search(pattern, tag)) for tag in ("eval/fid@128", "eval/sfid@128")] == [1, 0]


def test_what_no_row_was_concerned_by_is_not_written():
    nan = float("nan")
    assert concerned({"loss": 0.5, "loss_level_3": nan}) == {"loss": 0.5}
    # A run that goes wrong shows everywhere.
    assert set(concerned({"loss": nan, "loss_level_3": nan})) == {"loss", "loss_level_3"}


def test_a_start_says_soon_when_it_will_be_done(capfd):
    """Steps 3 .. 7 of a start are measured, evaluations by their share of a step's operations."""
    config = digits.get_config()  # 2000 steps, an evaluation every 1000
    now = [0.0]
    clock = Clock(lambda: now[0], lambda: 0.0)
    clock.stepping()
    outlook = Outlook(clock, 10, config, step_flops=100, evaluation_flops=2000)
    for step in range(11, 20):
        now[0] += 60.0 if step == 11 else 0.5
        outlook.reached(step, jnp.zeros(()))
    out = capfd.readouterr().out
    assert out.startswith("512 images/s: done at about ") and out.count("\n") == 1
    # 1983 steps are left of half a second, and two evaluations of 20 of them.
    assert "(steps 0:16:32, evaluations about 0:00:20)" in out
    late = datetime.datetime(2026, 12, 31, 23, 50)
    assert "about 2027-01-01 00:06 (" in outlook.line(17, 0.5, late)
    config.evaluation.every_steps = 0
    assert outlook.line(17, 0.5, late).endswith("00:06 (steps 0:16:32)")


def test_a_sheet_says_what_its_rows_columns_and_tiles_are():
    """The images stay as they are, and there is writing left of, above and below them."""
    images = np.random.default_rng(0).integers(0, 255, (6, 64, 64, 3), np.uint8)
    page = sheets.sheet(
        images,
        columns=3,
        row_names=["goldfish\n1 step", "tench\n1 step"],
        column_names=["a", "b", "c"],
        captions=["a name that is far too long for its tile"] * 6,
        blocks={"samples": 2, "real": 1},
    )
    tops = [2 + 2 * 17 + row * (64 + 17 + 2) for row in range(2)]
    last = page.shape[1] - 66
    lefts = [last - 14 - 2 * 66, last - 14 - 66, last]
    for index, image in enumerate(images):
        top, left = tops[index // 3], lefts[index % 3]
        np.testing.assert_array_equal(page[top : top + 64, left : left + 64], image)
    between = page[:, last - 14 : last - 2]
    written = [page[top : top + 64, : lefts[0] - 2] for top in tops]
    written += [page[:17, lefts[0] : last - 16], page[:17, last:]]
    written += [page[19:34, left : left + 64] for left in lefts]
    written += [page[top + 64 : top + 81, left : left + 64] for top in tops for left in lefts]
    for area in written:
        assert (area == 255).mean() > 0.6 and area.min() < 100
    assert between[tops[0] :].min() == 255


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sheets_are_pictures_whatever_the_channels(channels):
    page = sheets.sheet(np.zeros((4, 8, 8, channels), np.uint8), columns=2)
    assert page.shape == (134, 134, 3)


def test_pages_of_unlike_heights_stand_beside_each_other():
    pages = np.zeros((3, 2, 3), np.uint8), np.full((1, 1, 3), 7, np.uint8)
    found = sheets.beside(*pages)
    assert found[..., 0].tolist() == [[0, 0, 7], [0, 0, 255], [0, 0, 255]]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def make_terminal(monkeypatch):
    """Makes the process's output a terminal 100 columns wide; returns what it is sent."""
    output = Terminal()
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setattr(sys, "stderr", output)
    monkeypatch.setattr(
        progress,
        "Console",
        lambda **_: Console(file=output, force_terminal=True, width=100, color_system=None),
    )
    return output


def test_on_a_terminal_a_bar_counts_below_the_lines(monkeypatch):
    screen = make_terminal(monkeypatch)
    with terminal_bars(shown=True) as bar:
        numbers = []
        for number in counted(bar, "steps", range(4, 11)):
            numbers.append(number)
            print(f"line {number}")
            with bar("samples", 20, 0) as more:
                more(20)
    assert numbers == list(range(4, 11))
    text = screen.getvalue()
    assert "line 4" in text and "10/10 steps" in text
    # The bar of what was done on the way is gone at the end.
    assert "samples" not in text[text.rindex("10/10 steps") :]


def test_off_a_terminal_there_are_lines_and_nothing_else(capfd):
    with terminal_bars(shown=True) as bar:
        for number in counted(bar, "steps", range(1, 4)):
            print(f"line {number}")
    assert capfd.readouterr() == ("line 1\nline 2\nline 3\n", "")


def test_lines_that_go_into_a_file_stay_out_of_the_bars(monkeypatch):
    """`command > file` on a terminal: the bar is on stderr, and no line is caught by it."""
    screen = make_terminal(monkeypatch)
    file = io.StringIO()
    monkeypatch.setattr(sys, "stdout", file)
    with progress_bar("images", 2) as advance:
        advance(2)
        print("a line")
    assert file.getvalue() == "a line\n"
    assert "2/2 images" in screen.getvalue()


def test_other_hosts_show_no_bar(monkeypatch):
    screen = make_terminal(monkeypatch)
    with terminal_bars(shown=False) as bar:
        assert list(counted(bar, "steps", range(1, 3))) == [1, 2]
    assert screen.getvalue() == ""


def test_slow_rates_keep_a_digit():
    assert [progress.rate(speed) for speed in (0.0312, 2.5, 26.4, 12345.6)] == [
        *("0.031", "2.5", "26", "12,346")
    ]

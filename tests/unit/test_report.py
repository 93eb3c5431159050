"""The report: what it reads, what it draws, and that it needs nothing else."""

import dataclasses
from html.parser import HTMLParser
import io
import json
import math
import re

from etils import epath
import numpy as np
from PIL import Image
import pytest

from data_pipeline.errors import UserError
from shortcut_tpu.cli import config as config_lib
from shortcut_tpu.observability import environment
from shortcut_tpu.observability.charts import Line, chart, short
from shortcut_tpu.observability.curves import curves
from shortcut_tpu.observability.events import Record, read_events
from shortcut_tpu.observability.html_elements import NONE
from shortcut_tpu.observability.page import page
from shortcut_tpu.observability.summary import SCORES, Score, Summary, read_summary
from shortcut_tpu.observability.writers import make_writer
from shortcut_tpu.report import names

PARAMS = {"blocks": {"kernel": np.zeros((2, 3))}}
# Elements that have no end.
VOID = {"meta", "img", "br"}


class Elements(HTMLParser):
    """Every element with its attributes; fails where one ends that did not begin last."""

    def __init__(self, text):
        super().__init__()
        self.found, self._open = [], []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def of(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


def png(size):
    content = io.BytesIO()
    Image.new("RGB", size).save(content, "png")
    return content.getvalue()


@pytest.fixture
def runs(tiny_config):
    """Two runs; the second is of another method, its name is hostile."""
    scalars = {
        "train/loss": {10: 2.0, 20: 1.0},
        "eval/fd_pixel@1": {10: 8.0, 20: 4.0},
        "eval/fd_pixel@4": {10: 3.0, 20: 2.0},
        "perf/goodput": {20: 0.875},
    }
    images = {"samples/1_steps": (20, png((50, 20)))}
    first = Summary(
        name="first",
        config=tiny_config,
        step=20,
        record=Record(scalars, images),
        starts=[
            {
                "step": 0,
                "time": "2026-01-01T02:03:04+00:00",
                "device_kind": "TPU v5e",
                "jax": "0.10",
            },
            {
                "step": 9,
                "time": "2026-01-02T02:03:04+00:00",
                "device_kind": "TPU v5e",
                "jax": "0.11",
            },
        ],
        score=Score("fd_pixel", step=20, num_samples=500, distances={1: 3.5, 128: 1.25}),
    )
    other = tiny_config.copy_and_resolve_references()
    with other.unlocked():
        other.objective.name = "flow_matching"
    second = dataclasses.replace(
        first,
        name="<script>&",
        config=other,
        record=Record({"train/loss": {10: 3.0}, "train/extra": {}}, {}),
        starts=[],
        score=None,
    )
    return first, second


def test_events_are_those_that_were_written(tmp_path, tiny_config):
    """By clu, over two starts: the later value of a step counts; what is not finite is left out."""
    for loss in (3.0, 2.0):
        writer = make_writer(epath.Path(tmp_path), tiny_config, PARAMS, ["fd_pixel"])
        writer.write_scalars(5, {"train/loss": loss, "train/nan": math.nan})
        writer.write_images(5, {"samples/1_steps": np.full((1, 6, 4, 3), loss / 4)})
        writer.close()
    record = read_events(epath.Path(tmp_path))
    assert record.scalars == {"train/loss": {5: 2.0}, "train/nan": {}}
    step, picture = record.images["samples/1_steps"]
    assert step == 5
    assert np.unique(np.asarray(Image.open(io.BytesIO(picture)))).tolist() in ([127], [128])
    with pytest.raises(UserError, match="no event files"):
        read_events(epath.Path(tmp_path / "nowhere"))


def test_starts_are_kept_one_after_the_other(tmp_path):
    workdir = epath.Path(tmp_path)
    assert environment.recorded(workdir) == []
    environment.record(workdir, 0)
    with (tmp_path / environment.FILE).open("a") as file:
        file.write("damaged\n")
    environment.record(workdir, 40)
    starts = environment.recorded(workdir)
    assert [start["step"] for start in starts] == [0, 40]
    assert starts[0]["devices"] == 8 and starts[0]["device_kind"] == "cpu"


def test_a_report_needs_nothing_else(runs):
    text = page(runs)
    elements = Elements(text)
    for _, attributes in elements.found:
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith("data:")
    assert not re.search(r"https?:|@import|url\(", text)
    assert elements.of("script") == []
    assert text.count("&lt;script&gt;&amp;") > 3
    assert "prefers-color-scheme: dark" in text


def test_a_report_says_what_the_runs_are(runs):
    text = page(runs)
    for cell in ("87.5%", "TPU v5e", "<td>20 of 12</td>"):
        assert cell in text
    # The newest distances, and when they were; then those of `evaluate`.
    assert f"<td>20, while training</td><td>4</td><td>2</td><td>{NONE}</td>" in text
    assert f"<td>20, 500 samples</td><td>3.5</td><td>{NONE}</td><td>1.25</td>" in text
    assert "<td>8</td>" not in text
    # Of the config the table has the key that differs and no other.
    differing = re.findall(r"<tr><td><code>([^<]*)</code>", text)
    assert differing == ["objective.name"]
    # One line of each run that has the curve, none for a curve without points.
    loss = re.search(r"<figcaption>train/loss</figcaption><svg.*?</svg>", text, re.DOTALL)[0]
    assert loss.count("<polyline") == 2
    assert "train/extra" not in text
    assert page(runs[:1]).count('class="keys"') == 0


def test_a_report_says_in_what_starts_differ(runs):
    """What all have in common is said once; the rest is a column."""
    text = page(runs)
    section = re.search(r"Environment of each start.*?</section>", text, re.DOTALL)[0]
    assert re.findall(r"<th>([^<]*)</th>", section)[-2:] == ["kind", "jax"]
    assert section.count("0.10") == 1 and section.count("0.11") == 1
    assert "2026-01-02 02:03:04" in section
    other = dataclasses.replace(runs[0], starts=[runs[0].starts[0]])
    assert "In all of them: jax 0.10." in page([other])


def test_one_run_is_compared_with_the_defaults(runs, tiny_config):
    text = page(runs[:1])
    differing = re.findall(r"<tr><td><code>([^<]*)</code>", text)
    assert {"batch_size", "model.width"} <= {*differing}
    assert "seed" not in differing
    # Of the objectives and networks that do not train here, nothing.
    groups = {".".join(key.split(".")[:2]) for key in differing if key.count(".") == 2}
    assert groups == {"objective.shortcut"}
    assert f"<code>batch_size</code></td><td>{tiny_config.batch_size}</td><td>256</td>" in text


def test_curves_of_one_run_that_belong_together_are_one_chart(runs):
    scalars = {f"train/loss_level_{n}": {1: 1.0 + n, 2: 0.5} for n in range(3)}
    scalars |= {"train/skipped": {1: 0.0, 2: 0.0}, "perf/late": {1: 0.0, 2: 1.0}}
    run = dataclasses.replace(runs[0], record=Record(scalars, {}))
    text = "".join(curves([run]))
    assert text.count("<figure>") == 2
    assert [text.count(f"</svg>loss_level_{n}</span>") for n in range(3)] == [1, 1, 1]
    assert re.search(r"At 0 all the time</h2><p><code>train/skipped</code></p>", text)
    # Of two runs each level is a chart of its own, behind a click.
    text = "".join(curves([run, dataclasses.replace(run, name="b")]))
    folded = re.search(r"<details>.*</details>", text)[0]
    assert folded.count("<figure>") == 3 and text.count("<figure>") == 4
    assert text.count("<polyline") == 8


def test_a_summary_is_what_the_workdir_holds(tmp_path, tiny_config):
    workdir = epath.Path(tmp_path)
    config_lib.save(tiny_config, workdir)
    writer = make_writer(workdir, tiny_config, PARAMS, ["fd_pixel"])
    writer.write_scalars(5, {"eval/fid@1": 2.0, "eval/fid@16": 1.0})
    writer.close()
    assert read_summary("a", workdir).score is None
    for content in ("no json", "[]", '{"metric": "fid"}'):
        (workdir / SCORES).write_text(content)
        assert read_summary("a", workdir).score is None
    found = {"metric": "fid", "step": 5, "num_samples": 9, "distances": {"1": 2.5}}
    (workdir / SCORES).write_text(json.dumps(found))
    summary = read_summary("a", workdir)
    assert summary.score == Score("fid", 5, 9, {1: 2.5})
    assert summary.distances() == {"fid": {1: {5: 2.0}, 16: {5: 1.0}}}
    assert summary.step == 0


def points(svg):
    found = [re.findall(r'points="([^"]*)"', svg)]
    return [[tuple(map(float, p.split(","))) for p in line.split()] for line in found[0]]


def test_charts_place_points_by_their_logarithms_or_themselves():
    """Equal ratios on logarithmic axes and equal differences on linear ones are equal distances."""
    values = [(1.0, 1.0), (2.0, 10.0), (4.0, 100.0)]
    ((log,),) = (points(chart("t", [Line("a", values, 0)], "x", log_x=True, log_y=True)),)
    assert log[1][0] - log[0][0] == pytest.approx(log[2][0] - log[1][0], abs=0.11)
    assert log[0][1] - log[1][1] == pytest.approx(log[1][1] - log[2][1], abs=0.11)
    ((linear,),) = (points(chart("t", [Line("a", values, 0)], "x")),)
    assert linear[2][0] - linear[1][0] == pytest.approx(2 * (linear[1][0] - linear[0][0]), abs=0.2)
    assert linear[0][1] > linear[1][1] > linear[2][1]


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("values", [(1.1, 1.9), (3e-7, 4e5), (5.0, 5.0), (0.0, 0.0), (-3.0, 2.0)])
def test_charts_have_ticks_whatever_the_range(values, log):
    svg = chart("t", [Line("a", list(enumerate(values)), 0)], "x", log_y=log)
    labels = re.findall(r'text-anchor="end">([^<]*)<', svg)
    assert 2 <= len(labels) <= 20
    assert len(set(labels)) == len(labels)
    places = [float(y) for y in re.findall(r'<circle[^>]*cy="([^"]*)"', svg)]
    assert len(places) == 2 and all(0 <= y <= 250 for y in places)


def test_long_lines_are_means_of_neighbours():
    svg = chart("t", [Line("a", [(float(x), float(x % 2)) for x in range(4000)], 0)], "x")
    ((line,),) = (points(svg),)
    assert len(line) == 400
    assert len({y for _, y in line}) == 1


def test_short_numbers():
    assert [short(v) for v in (0, 0.02, 1, 1500, 800_000, 2e6)] == [
        *("0", "0.02", "1", "1.5k", "800k", "2M")
    ]


def test_names_tell_the_folders_apart():
    folders = [epath.Path(p) for p in ("/runs/a/seed_0", "/runs/b/seed_0")]
    assert names(folders) == ["a/seed_0", "b/seed_0"]
    assert names(folders[:1]) == ["seed_0"]
    with pytest.raises(UserError, match="given twice"):
        names([folders[0], folders[0]])

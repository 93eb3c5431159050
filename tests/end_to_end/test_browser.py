"""TensorBoard and the report in a real browser: what a person sees of a run is there."""

import json
import re
import subprocess
import sys
import urllib.request

from etils import epath
import jax
import numpy as np
import pytest

from shortcut_tpu.cli import config as config_lib
from shortcut_tpu.observability import environment, sheets
from shortcut_tpu.observability.page import page
from shortcut_tpu.observability.summary import SCORES, read_summary
from shortcut_tpu.observability.writers import make_writer
from tests.end_to_end import browser as browsers

pytestmark = pytest.mark.skipif(bool(browsers.missing()), reason=browsers.missing())

STEPS = (1, 4, 128)
# TensorBoard keeps what it draws in shadow roots within shadow roots.
EVERYTHING = """
  const found = [];
  const visit = root => root.querySelectorAll('*').forEach(e => {
    found.push(e); if (e.shadowRoot) visit(e.shadowRoot);
  });
  visit(document);
"""
WORDS = f"""{EVERYTHING}
  return found.map(e => [...e.childNodes].filter(n => n.nodeType == 3).map(n => n.textContent)
    .join('')).join('').replace(/\\s/g, '');
"""
PICTURES = f"""{EVERYTHING}
  return found.filter(e => e.localName == 'img' && e.complete).map(e => e.naturalWidth);
"""


def make_run(workdir, objective):
    """What a run leaves for TensorBoard and the report, without the training."""
    config = config_lib.load("digits").copy_and_resolve_references()
    config.objective.name = objective
    config.data.path = (
        "a/folder/whose/name/is/longer/than/a/narrow/window/is/wide/and/has/no/spaces"
    )
    config_lib.save(config, workdir)
    environment.record(workdir, 0)
    environment.record(workdir, 40)
    params = {"blocks": {"kernel": jax.ShapeDtypeStruct((2, 3, 4), np.float32)}}
    random = np.random.default_rng(0)
    writer = make_writer(workdir, config, params, ["fid"])
    for step in (20, 40, 60):
        scalars = {f"train/{name}": 1 / step for name in ("loss", "loss_flow", "loss_level_0")}
        scalars |= {f"eval/fd_pixel@{n}": 50 / step + 1 / n for n in STEPS}
        writer.write_scalars(step, scalars | {"perf/images_per_second": 1000.0, "train/skipped": 0})
        samples = {f"{n} steps": random.integers(0, 256, (10, 8, 8, 1), np.uint8) for n in STEPS}
        images = {f"samples/{n}_steps": sheets.sheet(samples[f"{n} steps"], 5)[None] for n in STEPS}
        images["samples/same_noises"] = sheets.sheet(
            np.concatenate(list(samples.values())), 10, row_names=list(samples)
        )[None]
        images["eval/fd_pixel_over_steps"] = sheets.distance_figure("fd_pixel", {1: 2.0, 4: 1.0})[
            None
        ]
        writer.write_images(step, images)
    writer.close()
    score = {
        "metric": "fd_pixel",
        "step": 60,
        "num_samples": 100,
        "distances": {"1": 2.0, "2": 1.0},
    }
    (workdir / SCORES).write_text(json.dumps(score))
    return workdir


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = epath.Path(tmp_path_factory.mktemp("runs"))
    return make_run(folder / "first", "shortcut"), make_run(folder / "second", "flow_matching")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with browsers.Browser(tmp_path_factory.mktemp("browser")) as started:
        yield started


@pytest.fixture(scope="module")
def tensorboard(runs):
    """The address of a TensorBoard of the first run."""
    arguments = [f"--logdir={runs[0]}", "--host=127.0.0.1", "--port=0", "--load_fast=false"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with browsers.ended(process):
        for line in process.stdout:
            if found := re.search(r"http://127\.0\.0\.1:\d+/", line):
                address = found[0]
                break
        browsers.wait_for(lambda: data(address, "scalars/tags"), "run in TensorBoard")
        yield address


def data(address, path):
    with urllib.request.urlopen(f"{address}data/plugin/{path}", timeout=60) as answer:
        return json.load(answer)


def test_tensorboard_shows_a_run(browser, tensorboard):
    (scalars,) = data(tensorboard, "scalars/tags").values()
    assert {"train/loss", "train/loss_level_0", *(f"eval/fd_pixel@{n}" for n in STEPS)} <= {
        *scalars
    }
    (images,) = data(tensorboard, "images/tags").values()
    assert {"samples/same_noises", "eval/fd_pixel_over_steps"} <= {*images}

    browser.look(width=1400)

    def missing(words):
        """TensorBoard breaks tags into several elements, so spaces do not count."""
        text = browser.run(WORDS)
        return [word for word in words if word.replace(" ", "") not in text]

    # On each tab, what a person looks for there.
    expected = {
        "timeseries": ("eval/fd_pixel@1", "eval/fd_pixel@128", "samples 4 cards"),
        "custom_scalars": ("fd_pixel by sampling steps", "loss by kind of row"),
        "images": ("samples/1_steps", "samples/128_steps"),
        "text": ("blocks.kernel", "2 x 3 x 4", '"batch_size": 256'),
        "hparams": ("objective.name", "optimizer.learning_rate"),
    }
    for tab, words in expected.items():
        browser.open("about:blank")
        browser.open(f"{tensorboard}#{tab}")
        browsers.wait_for(lambda words=words: not missing(words), f"{words} on {tab}")
        if tab == "images":
            browsers.wait_for(lambda: any(browser.run(PICTURES)), "picture")
    assert browser.complaints() == []


@pytest.mark.parametrize("number", [1, 2])
def test_the_report_fits_every_window_in_light_and_dark(browser, runs, tmp_path, number):
    summaries = [read_summary(name, run) for name, run in zip(("a", "b" * 60), runs, strict=True)]
    path = tmp_path / "report.html"
    path.write_text(page(summaries[:number]))
    for width in (400, 1400):
        for dark in (False, True):
            browser.look(width=width, dark=dark)
            browser.open(path.as_uri())
            browser.run("document.querySelectorAll('details').forEach(e => e.open = true)")
            assert browser.run("return document.documentElement.scrollWidth - innerWidth") <= 0
            pictures = browser.run("return [...document.images].map(e => e.naturalWidth)")
            assert len(pictures) == 4 * number and all(pictures)
            colors = browser.run(
                "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
            )
            paper, ink = (sum(map(int, re.findall(r"\d+", color))) / 765 for color in colors)
            assert (paper < 0.2 and ink > 0.8) if dark else (paper > 0.8 and ink < 0.2)
    assert browser.complaints() == []

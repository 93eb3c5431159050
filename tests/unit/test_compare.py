"""The comparison's arithmetic, its table, and its behaviour on methods that diverge or are done."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from etils import epath
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest
from sklearn.datasets import load_digits

from data_pipeline.autoencoders import load_autoencoder
from data_pipeline.encode_latents import encode
from data_pipeline.errors import UserError
from data_pipeline.manifest import Manifest
from data_pipeline.sources import open_source
from shortcut_tpu import compare
from shortcut_tpu.cli import config as config_lib
from shortcut_tpu.comparison import paper_claims, pictures
from shortcut_tpu.comparison.floor import real_floor
from shortcut_tpu.comparison.methods import method_config, training_flops
from shortcut_tpu.comparison.table import Row, table
from shortcut_tpu.evaluation.distances import GaussianStatistics, frechet_distance
from shortcut_tpu.models import NETWORKS
from shortcut_tpu.runs.loading import load_run
from shortcut_tpu.runs.starting import initial_state
from shortcut_tpu.sampling.guidance import Guidance
from shortcut_tpu.training.experiment import Experiment
from shortcut_tpu.training.flops import count_flops
from shortcut_tpu.training.parts import make_parts


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ConfigDict:
    """The digits for two steps of training and a few samples."""
    records = tmp_path_factory.mktemp("digits")
    encode(open_source("digits"), load_autoencoder("identity"), records)
    config = config_lib.load("digits").unlock()
    config.data.path = str(records)
    config.batch_size = 32
    config.model.update({"width": 16, "depth": 1, "num_heads": 2, "patch_size": 4, "unroll": 1})
    config.train.num_steps = 2
    config.comparison.update({"num_steps": 0, "num_pairs": 40, "pair_steps": 2})
    config.checkpoint.every_steps = 0
    config.evaluation.update({"num_samples": 20, "batch_size": 20})
    return config.lock()


def test_count_flops() -> None:
    """2 m k n for a product; three times that with both derivatives; a scan's by its length."""
    a, b = jnp.ones((3, 5)), jnp.ones((5, 7))
    product = 2 * 3 * 5 * 7
    assert count_flops(jnp.matmul, a, b) == product

    def loss(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.sum((a @ b) ** 2)

    assert count_flops(jax.jit(jax.grad(loss, argnums=(0, 1))), a, b) == 3 * product

    def scanned(x: jax.Array) -> jax.Array:
        turn = jax.checkpoint(lambda x, _: (jnp.tanh(x @ x), None))
        return jax.lax.scan(turn, x, None, length=6)[0]

    square = jnp.ones((4, 4))
    assert count_flops(scanned, square) == 6 * 2 * 4**3
    assert count_flops(lambda x: jax.lax.cond(x[0, 0] > 0, scanned, jnp.sin, x), square) == 768
    # Forward, again for the backward pass, and two products of that.
    assert count_flops(jax.grad(lambda x: scanned(x).sum()), square) == 4 * 6 * 2 * 4**3


def test_cost_of_shortcut(config: ConfigDict) -> None:
    """(3 + 2 k) / 3 of flow matching, k = 1/4, less what needs no gradient."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.objective.shortcut.bootstrap_share = 0.25
    flops = {
        name: training_flops(method_config(config, name, 0))
        for name in ("flow_matching", "shortcut", "diffusion")
    }
    assert flops["diffusion"] == flops["flow_matching"]
    assert flops["shortcut"] / flops["flow_matching"] == pytest.approx(3.5 / 3, rel=0.02)


def test_the_network_in_use_keeps_its_keys(config: ConfigDict) -> None:
    own = config.copy_and_resolve_references()
    with own.unlocked():
        own.model.update({"network": "in_context", "in_context": {"aux_head_depth": 1}})
    for name, left in (("improved_meanflow", "in_context"), ("koopman", "koopman")):
        run = method_config(own, name, 0)
        assert {*NETWORKS} & {*run.model} == {left}
        make_parts(run)


def single(config: ConfigDict, workdir: Path) -> compare.Plan:
    """A method that is one training, in a folder of its own."""
    return compare.Plan([compare.Training(config, epath.Path(workdir))])


def test_score_is_kept(config: ConfigDict, tmp_path: Path, monkeypatch: Any) -> None:
    """Trained and scored once; then read, whatever another method's keys; refused for a change."""
    run = compare.plan(config, "meanflow", 3, epath.Path(tmp_path))
    distances = compare.score(run, [1, 2])
    assert distances is not None
    assert set(distances) == {1, 2}
    assert all(distance > 0 for distance in distances.values())
    # A row of samples, and one of real images: five labels at one step and at two, 64 pixels each.
    folders = {"meanflow": epath.Path(run.scored.workdir), "absent": epath.Path(tmp_path)}
    page = pictures.methods_sheet(folders, [1, 2, 4], config.data)
    assert page is not None and page.shape[0] == 2 + 2 * 17 + 2 * 66
    # 4 steps were not made.
    assert (page[36:100, -5 * 66 :] == 255).all() and (page[102:166, -5 * 66 :] != 255).any()
    assert (page[36:100, -10 * 66 - 14 : -5 * 66 - 14] != 255).any()
    monkeypatch.setattr(compare, "train", None)
    assert compare.score(run, [1, 2]) == distances
    changed = config.copy_and_resolve_references()
    with changed.unlocked():
        changed.objective.shortcut.clip = 3.0
        changed.model.koopman.code_channels = 2
    assert compare.score(compare.plan(changed, "meanflow", 3, epath.Path(tmp_path)), [1, 2])
    with changed.unlocked():
        changed.objective.meanflow.time_std = 2.0
    with pytest.raises(UserError, match="another config"):
        compare.score(compare.plan(changed, "meanflow", 3, epath.Path(tmp_path)), [1, 2])


def test_phases_of_reflow(config: ConfigDict, tmp_path: Path, capsys: Any) -> None:
    """A teacher by flow matching in half of the steps, its pairs, a student from its average."""
    longer = config.copy_and_resolve_references()
    with longer.unlocked():
        longer.train.num_steps = 5
    plan = compare.plan(longer, "reflow", 0, epath.Path(tmp_path))
    teacher, student = (training.config for training in plan.trainings)
    assert (teacher.objective.name, teacher.train.num_steps) == ("flow_matching", 2)
    assert (student.objective.name, student.train.num_steps) == ("reflow", 3)
    with pytest.raises(UserError, match="no such file"):
        initial_state(Experiment.from_config(student, jax.devices()))

    assert set(compare.score(plan, [1]) or {}) == {1}
    taught = load_run(epath.Path(student.teacher.workdir))
    first = initial_state(Experiment.from_config(student, jax.devices()))
    for weights in (first.params, *first.emas.values()):
        jax.tree.map(np.testing.assert_array_equal, weights, taught.params)
    assert set(first.emas) == {"evaluation", "target", "teacher"}
    pairs = Manifest.load(student.data.pairs)
    assert (pairs.num_records, pairs.preprocessing["steps"]) == (40, 2)
    # Others distill the same teacher and its same pairs.
    for name, wants_pairs in (("koopman", True), ("progressive_distillation", False)):
        other = compare.plan(longer, name, 0, epath.Path(tmp_path))
        assert other.trainings[0] == plan.trainings[0]
        assert (other.scored.config.data.pairs == student.data.pairs) == wants_pairs
    training = sum(training_flops(each.config) for each in plan.trainings)
    # Two steps for each pair, a pass forward each.
    x, rows = np.zeros((1, 8, 8, 1)), np.zeros(1)
    step = count_flops(taught.experiment.model.apply, taught.params, x, rows, rows, np.array([0]))
    assert plan.flops() - training == 40 * 2 * step
    with student.unlocked():
        student.teacher.workdir = ""
    with pytest.raises(UserError, match="needs a teacher"):
        initial_state(Experiment.from_config(student, jax.devices()))


def test_a_one_step_method_is_scored_in_one_step(config: ConfigDict, tmp_path: Path) -> None:
    """`get` leaves the other columns of its row empty."""
    plan = compare.plan(config, "get", 0, epath.Path(tmp_path))
    (tmp_path / "get" / "seed_0").mkdir(parents=True)
    distances = compare.score(plan, [1, 4])
    assert set(distances or {}) == {1}
    row = Row("get", [distances], 2.0, 2, 1e-3)
    assert table("fd_pixel", [1, 4], [row])[1].split()[2] == "-"


def test_divergence_is_reported(config: ConfigDict, tmp_path: Path, capsys: Any) -> None:
    """A learning rate that blows up gives None and a line that says so, and that is kept too."""
    run = method_config(config, "flow_matching", 0)
    with run.unlocked():
        run.optimizer.update({"learning_rate": 1e30, "warmup_steps": 0})
    plan = single(run, tmp_path)
    assert compare.score(plan, [1]) is None
    assert "diverged" in capsys.readouterr().out
    assert json.loads((tmp_path / "distances.json").read_text())["distances"] is None
    assert compare.score(plan, [1]) is None


def test_config_errors_are_not_divergence(config: ConfigDict, tmp_path: Path) -> None:
    run = method_config(config, "shortcut", 0)
    with run.unlocked():
        run.objective.shortcut.bootstrap_share = 0.3
    with pytest.raises(UserError, match="unit fraction"):
        compare.score(single(run, tmp_path), [1])


def test_table_and_json() -> None:
    """Mean and sample deviation over the seeds that did not diverge."""
    rows = [
        Row("shortcut", [{1: 1.0, 4: 0.5}, {1: 3.0, 4: 0.5}, None], 1.17, 1, 6e-3),
        Row("meanflow", [None, None, None], 1.5, 2, 1e-3),
    ]
    assert rows[0].distances == {1: (2.0, pytest.approx(np.sqrt(2))), 4: (0.5, 0.0)}
    assert rows[0].to_json()["distances"]["1"]["mean"] == 2.0
    nothing = {"distances": {}, "cost": 1.5, "phases": 2, "seeds": 3, "diverged": 3}
    nothing |= {"learning_rate": 1e-3, "guidance": {}, "guidance_interval": [0.0, 1.0]}
    assert rows[1].to_json() == nothing
    header, first, second = table("fd_pixel", [1, 4], rows)
    assert header.split() == ["fd_pixel", "1", "4", "cost", "phases", "rate"]
    assert "0.006" in first and "0.001" in second
    assert "2 ± 1.4" in first and "1.17" in first and "1 of 3 seeds diverged" in first
    assert second.split()[1:3] == ["diverged", "diverged"]
    guided = dataclasses.replace(rows[0], guidance=Guidance.parse("4:1.5"))
    assert guided.to_json()["guidance"] == {"1": 1.0, "4": 1.5}
    assert "guided 1,4:1.5" in table("fd_pixel", [1, 4], [guided])[1]
    assert "guided" not in first


def test_floor(config: ConfigDict) -> None:
    """FD(A, B) of the records' halves times (1/n + 1/N) / (1/|A| + 1/|B|), of the digits' pixels.

    As far apart are 2000 and 1797 Gaussian vectors of the digits' mean and covariance.
    """
    digits = load_digits().data / 8 - 1
    halves = [GaussianStatistics.empty(64).add(half) for half in (digits[::2], digits[1::2])]
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.evaluation.num_samples = 2000
    found = real_floor(config)
    law = (1 / 2000 + 1 / 1797) / (1 / 899 + 1 / 898)
    assert found == pytest.approx(frechet_distance(*halves) * law, rel=1e-4)
    rng = np.random.default_rng(0)
    drawn = [
        GaussianStatistics.empty(64).add(
            rng.multivariate_normal(digits.mean(0), np.cov(digits.T), n)
        )
        for n in (2000, 1797)
    ]
    assert found == pytest.approx(frechet_distance(*drawn), rel=0.1)


def test_claims() -> None:
    """Each is decided by its own two numbers, and left out where one is missing."""
    distances = {
        "shortcut": {1: 0.5, 4: 0.3, 128: 0.23},
        "flow_matching": {1: 9.0, 4: 0.2, 128: 0.2},
    }
    beats_1, beats_4, near_128 = paper_claims.check(distances)
    assert beats_1.startswith("holds") and "9" in beats_1
    assert beats_4.startswith("FAILS")
    assert near_128.startswith("FAILS")
    assert paper_claims.check({"meanflow": {1: 1.0}}, {"meanflow": 1}) == []
    (one_phase,) = paper_claims.check({}, {"shortcut": 1, "reflow": 2})
    assert one_phase.startswith("holds") and "one phase" in one_phase
    assert paper_claims.check({}, {"shortcut": 2})[0].startswith("FAILS")


def test_parse_methods() -> None:
    assert compare.parse_methods("meanflow,shortcut,meanflow") == ["meanflow", "shortcut"]
    assert "alpha_flow" in compare.parse_methods("all")
    with pytest.raises(UserError, match="none of"):
        compare.parse_methods("shortcut,nonsense")

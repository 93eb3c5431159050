"""Weights of other repositories in, ours out, against what those repositories' code computes.

`tests/golden/make_conversion_goldens.py` remakes the golden files.
"""

import argparse
import dataclasses
import functools
import io
import json
import os
from pathlib import Path
import pickle
import subprocess
import sys

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy

from configs import common
from data_pipeline.errors import UserError
from data_pipeline.pickles import read_pickle
from data_pipeline.torch_archive import read_torch_archive
from shortcut_tpu.conversion import foreign, official, torch_dit
from shortcut_tpu.conversion.artifact import write_artifact
from shortcut_tpu.conversion.foreign import require
from shortcut_tpu.conversion.runs import make_run
from shortcut_tpu.evaluation.generator import make_generator, sample_keys
from shortcut_tpu.runs.loading import load_run
from shortcut_tpu.runs.tensors import card, read_tensors, write_tensors
from shortcut_tpu.training.experiment import Experiment
from tests.unit.test_autoencoders import write_kl
from tests.unit.test_official_parity import official_views

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
OFFICIAL = GOLDEN / "official_checkpoint.pickle"
STATE_DICT = GOLDEN / "torch_dit.pt"


@pytest.fixture(autouse=True)
def _exact_matmuls():
    with jax.default_matmul_precision("highest"):
        yield


def load(name):
    with np.load(GOLDEN / f"{name}.npz") as archive:
        return dict(archive)


def golden_config(configure):
    """A config of the golden networks."""
    config = common.get_config()
    config.batch_size = 32
    config.model.update(width=12, depth=2, num_heads=3, patch_size=2, dtype="float32")
    config.data.update(image_size=4, channels=2, num_classes=3)
    configure(config)
    return config


def assert_agrees(ours, theirs, tolerance=1e-5):
    """Largest difference below the tolerance times the root mean square, itself not tiny."""
    scale = np.sqrt(np.mean(np.square(theirs)))
    assert scale > 0.1
    assert np.max(np.abs(np.asarray(ours) - theirs)) < tolerance * scale


def samples(experiment, params, golden, num_steps):
    model = experiment.model
    keys = sample_keys(0, jnp.arange(len(golden["x"])))

    def sample(params, x0, labels):
        velocity = functools.partial(model.apply, params)
        return experiment.objective.sample(velocity, x0, labels, num_steps, keys)

    return jax.jit(sample)(params, golden["x"], golden["labels"])


# ------------------------------------------------------------------ official
def test_an_official_checkpoint_becomes_a_run(tmp_path, devices):
    """s(x_t, t, d, y) and Euler's samples of both sets of weights, from disk to disk."""
    golden, workdir = load("official_checkpoint"), epath.Path(tmp_path / "run")
    config = golden_config(official.configure_official)
    step, *both = official.read_official(OFFICIAL)
    require(OFFICIAL, config, official.official_facts(OFFICIAL, both[0]))
    model = Experiment.from_config(config, devices[:1]).model
    params, average = (official.official_params(OFFICIAL, w, model) for w in both)
    make_run(config, workdir, step, params, average)

    run = load_run(workdir)
    assert (run.step, step) == (1234, 1234)
    jax.tree.map(np.testing.assert_array_equal, run.params, average)
    apply = jax.jit(model.apply)
    inputs = [golden["x"], golden["t"], 2.0 ** -golden["level"], golden["labels"]]
    assert_agrees(apply(run.params, *inputs), golden["v_average"])
    assert_agrees(apply(params, *inputs), golden["v_online"])
    for n in (1, 4):
        assert_agrees(samples(run.experiment, run.params, golden, n), golden[f"samples_{n}"])

    # The mapping that the parity tests use, the other way.
    views = official_views(params, model.config)
    assert sorted(views) == sorted(set(both[0]) - {"Embed_0/embedding"})
    for name, view in views.items():
        np.testing.assert_array_equal(view, both[0][name])

    with pytest.raises(UserError, match="holds a run already"):
        make_run(config, workdir, step, params, average)


def test_a_config_of_another_network_is_told_what_to_change():
    config = golden_config(official.configure_official)
    config.model.width, config.data.num_classes = 16, 10
    _, weights, _ = official.read_official(OFFICIAL)
    with pytest.raises(UserError) as caught:
        require(OFFICIAL, config, official.official_facts(OFFICIAL, weights))
    assert "--config.model.width=12 --config.data.num_classes=3" in str(caught.value)


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(Evil()), "names posix.system"),
        (pickle.dumps({"a": np.array([Evil()], object)}, 4), "holds an array of 'O8'"),
        (pickle.dumps({"a": {1, 2}}, 2), "names (builtins|__builtin__).set"),
        (OFFICIAL.read_bytes()[:-1000], "is damaged"),
        (b"", "is damaged"),
        (b"cnumpy\ndtype\n.", "holds a Call"),
        (pickle.dumps({"train_state": {"step": 3}}), "not a checkpoint of shortcut-models"),
    ],
)
def test_a_pickle_runs_nothing(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "checkpoint"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        official.read_official(path)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_trees_of_arrays_are_read_exactly(tmp_path, protocol):
    tree = {
        "numpy": np.arange(6, dtype=np.int16).reshape(2, 3),
        "fortran": np.asfortranarray(np.random.default_rng(0).normal(size=(3, 4))),
        "big": np.arange(3, dtype=">f4"),
        "bfloat16": np.arange(3).astype(jnp.bfloat16),
        "empty": np.zeros((0, 2), bool),
        "jax": jnp.arange(4.0),
        "scalar": np.float32(2.5),
        "state": optax.adam(1e-3).init({"w": jnp.ones(3)}),
        "plain": [1, 2.5, None, "text", (True,)],
        "told": argparse.Namespace(lr=0.1, sizes=[1, 2]),
    }
    path = tmp_path / "tree"
    path.write_bytes(pickle.dumps(tree, protocol))
    found = read_pickle(path)
    assert list(found) == list(tree)
    assert found["plain"] == tree["plain"]
    assert (found.pop("told"), vars(tree.pop("told"))) == ({"lr": 0.1, "sizes": [1, 2]},) * 2
    leaves = jax.tree.leaves({**tree, "state": 0, "plain": 0})
    assert len(leaves) > 7
    for ours, theirs in zip(
        jax.tree.leaves({**found, "state": 0, "plain": 0}), leaves, strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
        assert np.asarray(ours).dtype == np.asarray(theirs).dtype
    (count, mu, _), _ = found["state"]
    assert count == 0
    np.testing.assert_array_equal(mu["w"], np.zeros(3))


# ------------------------------------------------------------------ torch
def test_dit_predicts_the_noise_that_it_predicts_in_torch(devices):
    """e(x, k) at t = 1 - (k + 1)/1000, and DDIM's samples; the learned variance is left out.

    float32 tells a timestep of 1000 apart from its neighbours to 6e-5 only, on either side.
    """
    golden = load("torch_dit")
    config = golden_config(torch_dit.configure_dit)
    experiment = Experiment.from_config(config, devices[:1])
    weights = read_torch_archive(STATE_DICT)
    require(STATE_DICT, config, torch_dit.torch_dit_facts(STATE_DICT, weights))
    params = torch_dit.torch_dit_params(STATE_DICT, weights, experiment.model, "dit")
    t = (1 - (golden["timesteps"] + 1) / 1000).astype(np.float32)
    for d in (1.0, 1 / 8):
        found = jax.jit(experiment.model.apply)(
            params, golden["x"], t, jnp.full(len(t), d), golden["labels"]
        )
        assert_agrees(found, golden["epsilon"], 2e-4)
    assert_agrees(samples(experiment, params, golden, 4), golden["dit_samples_4"], 2e-4)
    # One step divides by sqrt(a) = 0.006.
    assert_agrees(samples(experiment, params, golden, 1), golden["dit_samples_1"], 2e-3)


def test_sit_has_the_velocity_that_it_has_in_torch(devices):
    """v(x, t) on x_t = (1 - t) x_0 + t x_1, and Euler's samples, though the logits are faithful."""
    golden = load("torch_dit")
    config = golden_config(torch_dit.configure_sit)
    experiment = Experiment.from_config(config, devices[:1])
    weights = read_torch_archive(STATE_DICT)
    params = torch_dit.torch_dit_params(STATE_DICT, weights, experiment.model, "sit")
    inputs = (golden["x"], golden["t"], jnp.ones(len(golden["t"])), golden["labels"])
    assert_agrees(jax.jit(experiment.model.apply)(params, *inputs), golden["velocity"])
    assert_agrees(samples(experiment, params, golden, 4), golden["sit_samples_4"])


def test_reversed_time_is_the_same_function():
    """W [cos wk; sin wk] = W' [cos ws; sin ws], s = 999 - k."""
    kernel = np.random.default_rng(0).normal(size=(256, 5))
    frequencies = np.exp(-np.log(10_000.0) * np.arange(128) / 128)
    k = np.array([0.0, 1.0, 400.5, 999.0])

    def features(value):
        angles = value[:, None] * frequencies
        return np.concatenate([np.cos(angles), np.sin(angles)], axis=1)

    found = features(999 - k) @ foreign.reversed_time(kernel, 999)
    np.testing.assert_allclose(found, features(k) @ kernel, atol=1e-10)


def shapes_only(width, depth, classes=1001):
    """What the facts are read from, of a network of this size, without its memory."""

    def zeros(*shape):
        return np.broadcast_to(np.float32(0), shape)

    return {
        "x_embedder.proj.weight": zeros(width, 4, 2, 2),
        "y_embedder.embedding_table.weight": zeros(classes, width),
        "pos_embed": zeros(1, 256, width),
        **{f"blocks.{n}.mlp.fc1.weight": zeros(4 * width, width) for n in range(depth)},
    }


@pytest.mark.parametrize(
    ("width", "depth", "heads"),
    [(384, 12, 6), (768, 12, 12), (1024, 24, 16), (1152, 28, 16)],
)
def test_heads_of_the_published_sizes_are_known(width, depth, heads):
    """S, B, L and XL of arXiv 2212.09748, table 1; SiT has the same."""
    facts = torch_dit.torch_dit_facts("x", shapes_only(width, depth))
    assert (facts["model.num_heads"], facts["data.num_classes"]) == (heads, 1000)
    assert "model.num_heads" not in torch_dit.torch_dit_facts("x", shapes_only(width, depth + 1))
    config = golden_config(torch_dit.configure_dit)
    config.model.update(width=width, depth=depth, num_heads=heads + 2)
    config.data.update(image_size=32, channels=4, num_classes=1000)
    with pytest.raises(UserError, match=f"give --config.model.num_heads={heads}$"):
        require("x", config, facts)
    if (width, depth) in official._PUBLISHED:
        assert official._PUBLISHED[width, depth] == (heads, 32)


def test_what_nothing_tells_is_asked_for():
    """The golden network has 3 heads, and is of no published size."""
    config = golden_config(torch_dit.configure_sit)
    weights = read_torch_archive(STATE_DICT)
    facts = torch_dit.torch_dit_facts(STATE_DICT, weights)
    with pytest.raises(UserError, match="give --config.model.num_heads=N; N as they were trained"):
        require(STATE_DICT, config, facts, ["model.num_heads"])
    _, online, _ = official.read_official(OFFICIAL)
    facts = official.official_facts(OFFICIAL, online)
    assert not {"model.num_heads", "data.image_size"} & set(facts)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_weights_in_half_precision_are_read(devices, dtype):
    model = Experiment.from_config(golden_config(torch_dit.configure_sit), devices[:1]).model
    weights = {name: array.astype(dtype) for name, array in read_torch_archive(STATE_DICT).items()}
    params = torch_dit.torch_dit_params(STATE_DICT, weights, model, "sit")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    weights["pos_embed"] = (weights["pos_embed"].astype(np.float32) + 0.02).astype(dtype)
    with pytest.raises(UserError, match="not of sines and cosines"):
        torch_dit.torch_dit_params(STATE_DICT, weights, model, "sit")


def test_a_label_table_without_a_row_for_none(devices):
    """The last class stays a class; what stands for none is the mean."""
    config = golden_config(torch_dit.configure_sit)
    model = Experiment.from_config(config, devices[:1]).model
    weights = read_torch_archive(STATE_DICT)
    name = "y_embedder.embedding_table.weight"
    whole = weights[name]
    weights[name] = whole[:3]
    assert not torch_dit.has_null_label(weights, 3)
    assert torch_dit.torch_dit_facts(STATE_DICT, weights, 3)["data.num_classes"] == 3
    table = torch_dit.torch_dit_params(STATE_DICT, weights, model, "sit")["label_embed"]
    np.testing.assert_array_equal(table["embedding"][:3], whole[:3])
    np.testing.assert_allclose(table["embedding"][3], whole[:3].mean(0), rtol=1e-6)


@pytest.mark.parametrize("told", [{"path_type": "GVP"}, {"prediction": "score"}])
def test_a_sit_of_another_path_or_prediction_is_refused(told):
    torch_dit.check_arguments("x", "sit", {"path_type": "Linear", "prediction": "velocity"})
    torch_dit.check_arguments("x", "dit", told)
    with pytest.raises(UserError, match="x: trained with (path_type=GVP|prediction=score); only"):
        torch_dit.check_arguments("x", "sit", told)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("blocks.1.attn.proj.bias"), "blocks.1.attn.proj.bias is missing"),
        (lambda w: w.update(extra=np.zeros(2)), "extra has no place"),
        (lambda w: w.update(pos_embed=np.zeros((1, 4, 12))), "not of sines and cosines"),
    ],
)
def test_another_network_is_refused(devices, change, message):
    model = Experiment.from_config(golden_config(torch_dit.configure_sit), devices[:1]).model
    weights = read_torch_archive(STATE_DICT)
    change(weights)
    with pytest.raises(UserError, match=message):
        torch_dit.torch_dit_params(STATE_DICT, weights, model, "sit")


# ------------------------------------------------------------------ ours
@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of random weights on the latents of an autoencoder of random weights."""
    folder = tmp_path_factory.mktemp("made")
    write_kl(folder, "kl4")
    config = common.get_config()
    config.batch_size = 32
    config.seed = 3
    config.model.update(width=16, depth=2, num_heads=2, patch_size=2, dtype="float32")
    config.data.update(image_size=4, channels=4, num_classes=10, autoencoder=f"kl:{folder}")
    config.evaluation.guidance = "1.5"
    shapes = Experiment.from_config(config, jax.devices()[:1]).abstract_state.params
    rng = np.random.default_rng(0)
    params, average = (
        jax.tree.map(lambda a: (0.2 * rng.normal(size=a.shape)).astype(np.float32), shapes)
        for _ in range(2)
    )
    workdir = epath.Path(folder / "run")
    make_run(config, workdir, 7, params, average)
    return load_run(workdir)


def test_safetensors_come_back_bit_for_bit(run, tmp_path):
    first, second = (epath.Path(tmp_path / f"{name}.safetensors") for name in ("a", "b"))
    write_tensors(first, run.params, card(run, "evaluation"))
    config, step, params = read_tensors(first)
    assert (config.to_json(), step) == (run.experiment.config.to_json(), 7)
    jax.tree.map(np.testing.assert_array_equal, params, run.params)

    again = dataclasses.replace(run, params=params, step=step)
    write_tensors(second, params, card(again, "evaluation"))
    assert first.read_bytes() == second.read_bytes()
    assert first.with_suffix(".json").read_text() == second.with_suffix(".json").read_text()
    # By the format's own reader.
    theirs = safetensors.numpy.load(first.read_bytes())
    assert theirs["blocks.qkv.kernel"].shape == (2, 16, 3, 2, 8)
    assert (
        sum(a.size for a in theirs.values())
        == json.loads(first.with_suffix(".json").read_text())["parameters"]
    )


def test_damaged_safetensors_are_refused(run, tmp_path):
    path = epath.Path(tmp_path / "a.safetensors")
    write_tensors(path, run.params, card(run, "evaluation"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(UserError, match="truncated"):
        read_tensors(path)
    tensors = safetensors.numpy.load(whole)
    tensors["final.project.bias"] = np.zeros(3, np.float32)
    path.write_bytes(safetensors.numpy.save(tensors))
    with pytest.raises(UserError, match=r"final.project.bias has the shape \(3,\)"):
        read_tensors(path)
    path.with_suffix(".json").unlink()
    with pytest.raises(UserError, match=r"a\.json: cannot be read"):
        read_tensors(path)


ALONE = """
import sys
import jax, jax.export
import numpy as np
weights = dict(np.load("weights.npz"))
sampler = jax.export.deserialize(open("sampler_2.jax", "rb").read())
labels = np.array([3, 1, 4, 1, 5], np.int32)
images = sampler.call(weights, np.uint32(3), np.arange(10, 15, dtype=np.uint32), labels)
assert not {"flax", "shortcut_tpu", "data_pipeline"} & set(sys.modules), "more than jax"
assert sampler.platforms == ("cpu", "cuda", "tpu")
np.save(sys.stdout.buffer, np.asarray(images))
"""


def test_an_artifact_runs_with_jax_alone(run, tmp_path):
    """Its samples are those of `sample`, guided, for a number of them it was not traced with."""
    folder = epath.Path(tmp_path / "artifact")
    write_artifact(folder, run, "evaluation", [2])
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "XLA_FLAGS")}
    done = subprocess.run(
        [sys.executable, "-P", "-c", ALONE], cwd=folder, env=environment, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
    found = np.load(io.BytesIO(done.stdout))
    generator = make_generator(run.experiment, run.autoencoder)
    expected = generator(run.params, np.arange(10, 15), [3, 1, 4, 1, 5], 2)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    described = json.loads((folder / "card.json").read_text())
    assert described["steps"] == [2] and described["config"]["seed"] == 3
    with pytest.raises(UserError, match="not an empty folder"):
        write_artifact(folder, run, "evaluation", [2])

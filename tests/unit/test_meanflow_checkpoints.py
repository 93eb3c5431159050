"""MeanFlow's and improved MeanFlow's checkpoints, networks and losses, against their own code's.

`tests/golden/make_meanflow_goldens.py` remakes the golden files.
"""

import zipfile

from flax import serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.errors import UserError
from shortcut_tpu.conversion import imf, meanflow
from shortcut_tpu.conversion.foreign import require
from shortcut_tpu.conversion.linen import read_linen
from shortcut_tpu.objectives import ImprovedMeanFlow, Inputs, mean_velocity
from shortcut_tpu.training.experiment import Experiment
from tests.unit.test_conversion import GOLDEN, assert_agrees, golden_config, load, samples


@pytest.fixture(autouse=True)
def _exact_matmuls():
    with jax.default_matmul_precision("highest"):
        yield


def unzipped(name, folder):
    """A checkpoint as its authors' code wrote it, out of its zip."""
    with zipfile.ZipFile(GOLDEN / f"{name}.zip") as archive:
        archive.extractall(folder)
    return folder


def small_config(configure, **network):
    """A config of the golden networks of MeanFlow and its successor."""
    config = golden_config(configure)
    config.model.update(width=8, num_heads=2, **network)
    config.data.channels = 4
    return config


def test_a_checkpoint_of_meanflow_becomes_a_run(tmp_path, devices):
    """u(z, t, h, y) is -u(x, 1 - t, h, y) of ours, and its samples are ours, at 1 and 4 steps."""
    golden, config = load("meanflow_checkpoint"), small_config(meanflow.configure_meanflow)
    path = unzipped("meanflow_checkpoint", tmp_path)
    step, online, average = read_linen(path)
    require(path, config, meanflow.meanflow_facts(path, online))
    experiment = Experiment.from_config(config, devices[:1])
    params = [meanflow.meanflow_params(path, w, experiment.model) for w in (online, average)]
    apply, inputs = jax.jit(experiment.model.apply), (golden["h"], golden["labels"])
    for found, name in zip(params, ("online", "average"), strict=True):
        u = apply(found, golden["x"], 1 - golden["t"], *inputs)
        assert_agrees(-u, golden[f"u_{name}"])
    for n in (1, 4):
        assert_agrees(samples(experiment, params[1], golden, n), golden[f"samples_{n}"])
    assert step == 1234

    online["y_embedder/extra"] = np.zeros(2)
    with pytest.raises(UserError, match="y_embedder/extra has no place"):
        meanflow.meanflow_params(path, online, experiment.model)
    with pytest.raises(UserError, match="not the network of MeanFlow"):
        meanflow.meanflow_facts(path, {})


def imf_config(**sampling):
    """A config of iMF's golden network."""
    config = small_config(imf.configure_imf, mlp_ratio=8 / 3)
    config.model.depth = 3
    config.model.in_context.aux_head_depth = 1
    config.objective.improved_meanflow.update(sampling)
    return config


def our_conditions(golden):
    """1 - 1/w and the interval (1 - t_max, 1 - t_min)."""
    start, end = 1 - golden["t_max"], 1 - golden["t_min"]
    return {"guidance": 1 - 1 / golden["omega"], "guidance_start": start, "guidance_end": end}


def test_a_checkpoint_of_imf_gives_the_outputs_that_it_gives_in_its_own_code(tmp_path, devices):
    """u and v of (z, t, h, w, t_min, t_max, y) are ours, negated, of (x, 1 - t, h)."""
    golden, config = load("imf_checkpoint"), imf_config()
    path = unzipped("imf_checkpoint", tmp_path)
    step, online, average = read_linen(path)
    require(path, config, imf.imf_facts(path, online))
    model = Experiment.from_config(config, devices[:1]).model
    params = [imf.imf_params(path, weights, model) for weights in (online, average)]
    told = our_conditions(golden)
    inputs, apply = (
        (golden["x"], 1 - golden["t"], golden["h"], golden["labels"]),
        jax.jit(model.apply),
    )
    for found, name in zip(params, ("online", "average"), strict=True):
        u, v = np.split(apply(found, *inputs, **told), 2, axis=-1)
        assert_agrees(-u, golden[f"u_{name}"])
        assert_agrees(-v, golden[f"v_{name}"])
    assert step == 1234

    # The released B/2's guidance, and M/2's, which is stronger than any in training.
    for name, asked in (("b", (8.0, (0.35, 0.6))), ("m", (10.5, (0.4, 0.6)))):
        config = imf_config(sample_guidance=asked[0], sample_interval=asked[1])
        experiment = Experiment.from_config(config, devices[:1])
        for n in (1, 4):
            found = samples(experiment, params[1], golden, n)
            assert_agrees(found, golden[f"samples_{name}_{n}"])

    # What is published to be sampled from.
    names = {name.removeprefix("net/") for name in golden["inference_names"]}
    some = {name: array for name, array in average.items() if not name.startswith("v_heads")}
    assert {
        name.replace("/_flax_linear", "").replace("/_flax_embedding", "") for name in names
    } == set(some)
    alone = imf.imf_params(path, some, model)
    assert (imf.has_v_blocks(some), imf.has_v_blocks(average)) == (False, True)
    for part in ("head_0", "head_1"):
        jax.tree.map(
            np.testing.assert_array_equal, alone["heads"][part], params[1]["heads"]["head_0"]
        )
    with pytest.raises(UserError, match="v_heads_0/mlp_scale is missing"):
        imf.imf_params(
            path, {k: v for k, v in average.items() if k != "v_heads_0/mlp_scale"}, model
        )


def test_the_loss_of_imf_is_its_own_code_s_row_by_row(tmp_path, devices, monkeypatch):
    """|| V - v_g ||^2 and || v - v_g ||^2 of each row, with the official draws for ours.

    A row of ours with an interval is followed by one without; the official loss of each row was
    computed by itself. So are the gradients of the mean.
    """
    golden, config = load("imf_loss"), imf_config()
    experiment = Experiment.from_config(config, devices[:1])
    path = unzipped("imf_checkpoint", tmp_path)
    params = imf.imf_params(path, read_linen(path)[1], experiment.model)
    told = our_conditions(golden)
    labels = np.where(golden["dropped"], 3, golden["classes"])
    intervals = 1 - golden["t"], golden["t"] - golden["r"]
    monkeypatch.setattr(
        mean_velocity, "draw_intervals", lambda *_: tuple(map(jnp.asarray, intervals))
    )
    monkeypatch.setattr(mean_velocity, "drop_flow_labels", lambda *_: jnp.asarray(labels))
    monkeypatch.setattr(
        ImprovedMeanFlow, "draw_conditions", lambda *_: jax.tree.map(jnp.asarray, told)
    )
    monkeypatch.setattr(jax.random, "normal", lambda *_: jnp.asarray(golden["noise"]))

    def loss(params):
        inputs = Inputs(
            apply=experiment.model.apply,
            params=params,
            emas={},
            x1=jnp.asarray(golden["images"]),
            labels=jnp.asarray(golden["classes"]),
            null_label=3,
            key=jax.random.key(0),
            step=jnp.zeros((), jnp.int32),
            num_steps=1,
        )
        return experiment.objective.loss(inputs)

    (found, rows), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert_agrees(rows["loss_velocity"], golden["loss_v"])
    assert_agrees(rows["loss_interval"], golden["loss_u"][::2])
    np.testing.assert_allclose(found, golden["loss"].mean(), rtol=1e-5)

    shared, (u, v) = grads["shared_blocks"], (grads["heads"][f"head_{i}"]["blocks"] for i in (0, 1))
    width = config.model.width
    ours = {
        "shared_blocks_0/attn/q_proj": shared["qkv"]["kernel"][0, :, 0].reshape(width, width),
        "shared_blocks_1/mlp/w1": shared["gate_up"]["kernel"][1, :, 0],
        "u_heads_0/mlp/w2": u["down"]["kernel"][0],
        "v_heads_0/attn/out_proj": v["attention_out"]["kernel"][0].reshape(width, width),
        "omega_embedder/mlp/layers_2": grads["scalar_embed"]["guidance"]["out"]["kernel"],
    }
    for name, gradient in ours.items():
        official = golden[f"grad/{name}"]
        scale = np.sqrt(np.mean(np.square(official)))
        assert np.max(np.abs(gradient - official)) < 5e-5 * scale, name


def test_a_train_state_of_flax_is_read_in_each_of_its_forms(tmp_path):
    """A file of msgpack, a folder with one, and the newest of a folder of checkpoints."""
    state = {
        "step": np.int32(7),
        "params": {"net": {"q": {"_flax_linear": {"kernel": np.arange(6.0).reshape(2, 3)}}}},
        "ema_params": {"net": {"q": {"_flax_linear": {"kernel": np.ones((2, 3), np.float16)}}}},
        "opt_state": {"0": {}},
    }
    content = serialization.msgpack_serialize(state)
    (tmp_path / "checkpoint_5").write_bytes(b"older")
    (tmp_path / "checkpoint_10").mkdir()
    (tmp_path / "checkpoint_10" / "checkpoint").write_bytes(content)
    (tmp_path / "file").write_bytes(content)
    for path in (tmp_path, tmp_path / "checkpoint_10", tmp_path / "file"):
        step, weights, average = read_linen(path)
        assert (step, set(weights), set(average)) == (7, {"q/kernel"}, {"q/kernel"})
        np.testing.assert_array_equal(weights["q/kernel"], [[0, 1, 2], [3, 4, 5]])

    with pytest.raises(UserError, match="there is no such file or folder"):
        read_linen(tmp_path / "none")
    with pytest.raises(UserError, match="checkpoint_5: is damaged or no checkpoint of flax"):
        read_linen(tmp_path / "checkpoint_5")
    (tmp_path / "file").write_bytes(serialization.msgpack_serialize({"step": 3}))
    with pytest.raises(UserError, match="holds no step, params and ema_params"):
        read_linen(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: is damaged or no checkpoint"):
        read_linen(tmp_path / "empty")

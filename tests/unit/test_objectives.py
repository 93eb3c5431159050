"""Every objective on the network and the mesh that it will be trained with."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest

from configs import common
from data_pipeline.autoencoders import load_autoencoder
from shortcut_tpu.cli import config as config_lib
from shortcut_tpu.evaluation.generator import Generator
from shortcut_tpu.objectives import OBJECTIVES, Inputs, mean_velocity
from shortcut_tpu.pod import partitioning
from shortcut_tpu.sampling import samplers
from shortcut_tpu.training.experiment import Experiment

BATCH = 32
# The others are tried with their judges in test_fd_loss.
UNJUDGED = [name for name, objective in OBJECTIVES.items() if not objective.needs_judges]


def tiny_config(name: str, dtype: str = "float32") -> ConfigDict:
    """The digits on a network of two layers, with every guidance and dropout that there is."""
    config = config_lib.load("digits").unlock()
    config.update({"batch_size": BATCH})
    config.model.update({"width": 32, "depth": 2, "num_heads": 2, "patch_size": 4, "unroll": 1})
    config.model.update({"dtype": dtype, "remat": "full" if dtype == "bfloat16" else "none"})
    config.train.num_steps = 100
    config.optimizer.warmup_steps = 0
    config.objective.name = name
    config.objective.update(common.get_objectives())
    own = config.objective[OBJECTIVES[name].group]
    if "guidance" in own:
        own.guidance = 2.0
    return config


def seeded_state(experiment: Experiment) -> Any:
    """A state in mid-training with noise for weights: adaLN-Zero would answer all with zero."""
    abstract, rng = experiment.abstract_state, np.random.default_rng(9)
    params = jax.tree.map(lambda a: rng.normal(0, 0.1, a.shape).astype(a.dtype), abstract.params)
    state = dataclasses.replace(
        jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), abstract),
        step=np.full((), 40, np.int32),
        params=params,
        emas={name: jax.tree.map(lambda a: 1.1 * a, params) for name in abstract.emas},
    )
    return jax.tree.map(lambda a, like: jax.device_put(a, like.sharding), state, abstract)


def batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "mean": rng.normal(size=(BATCH, 8, 8, 1)).astype(np.float16),
        "noise": rng.normal(size=(BATCH, 8, 8, 1)).astype(np.float16),
        "label": rng.integers(10, size=BATCH).astype(np.int32),
    }


@pytest.mark.parametrize("name", OBJECTIVES)
def test_config_documents_every_hyperparameter(name: str) -> None:
    """configs/hyperparameters.py holds each field of the dataclass, with the same default."""
    fields = {field.name: field.default for field in dataclasses.fields(OBJECTIVES[name])}
    assert common.get_objectives()[OBJECTIVES[name].group].to_dict() == fields


@functools.cache
def report(name: str) -> dict[str, Any]:
    """The loss on one device and on a mesh (data 2, fsdp 2), and its gradients there.

    In bfloat16, through rematerialised layers. The update that follows knows no method.
    """
    alone, mesh = mesh_experiment(name, 1), mesh_experiment(name, 4)
    loss = jax.jit(functools.partial(loss_of, alone))
    one, of_one = loss(seeded_state(alone), laid_out(alone))

    def with_gradients(state: Any, rows: dict[str, jax.Array]) -> Any:
        def of_params(params: Any) -> Any:
            return loss_of(mesh, dataclasses.replace(state, params=params), rows)

        return jax.value_and_grad(of_params, has_aux=True)(state.params)

    state = seeded_state(mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state.params)
    step = jax.jit(with_gradients, out_shardings=(None, shardings))
    (four, metrics), gradients = step(state, laid_out(mesh))
    gradients = jax.tree.map(np.asarray, gradients)
    return {
        # Some losses are weighted by their own size, so that they say little.
        "losses": {"loss": [float(one), float(four)]}
        | {k: [float(jnp.nanmean(m[k])) for m in (of_one, metrics)] for k in metrics},
        "finite": all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients)),
        "stuck": [
            jax.tree_util.keystr(path)
            for path, leaf in jax.tree.leaves_with_path(gradients)
            if not leaf.any()
        ],
        "metrics": {k: v.ndim for k, v in metrics.items() if k.startswith("loss_")},
    }


def mesh_experiment(name: str, devices: int) -> Experiment:
    config = tiny_config(name, "bfloat16")
    mesh = {"data": max(devices // 2, 1), "fsdp": min(devices, 2), "tensor": 1, "gather": "step"}
    config.mesh.update(mesh)
    return Experiment.from_config(config, jax.devices()[:devices])


def laid_out(experiment: Experiment) -> dict[str, jax.Array]:
    rows = partitioning.rows(experiment.mesh)
    return {name: jax.device_put(array, rows) for name, array in batch().items()}


def loss_of(experiment: Experiment, state: Any, rows: dict[str, jax.Array]) -> Any:
    return experiment.objective.loss(
        Inputs(
            apply=experiment.model.apply,
            params=state.params,
            emas=state.emas,
            x1=rows["mean"].astype(jnp.float32),
            labels=rows["label"],
            null_label=experiment.model.null_label,
            key=jax.random.key(0),
            step=state.step,
            num_steps=100,
            row_shards=partitioning.row_shards(experiment.mesh),
            x0=rows["noise"].astype(jnp.float32),
            differentiable=experiment.model.tangents.apply,
            model=experiment.model,
        )
    )


@pytest.mark.parametrize("name", UNJUDGED)
def test_loss_on_a_mesh(name: str) -> None:
    """On (data 2, fsdp 2) it is that on one device: over how many rows lie changes nothing.

    To bfloat16's rounding; rows with another noise or another time would show in the first digits.
    """
    for part, (alone, mesh) in report(name)["losses"].items():
        # What was rounded is about 1, whatever the error; a part may be the error of one row.
        absolute = 1e-4 if part == "loss" else 1e-3
        assert mesh == pytest.approx(alone, rel=1e-3, abs=absolute, nan_ok=True)


@pytest.mark.parametrize("name", UNJUDGED)
def test_gradients_in_bfloat16_on_a_mesh(name: str) -> None:
    """Through scanned, rematerialised bf16 layers they are finite, and none is zero.

    Metrics stay by row.
    """
    result = report(name)
    assert result["finite"]
    assert not result["stuck"]
    assert result["metrics"]
    assert min(result["metrics"].values()) >= 1


def inputs_for(experiment: Experiment) -> tuple[Inputs, list[jax.Array]]:
    """Inputs of the network of `experiment` and eight points (x, t, d, v)."""
    params = seeded_state(experiment).params
    x, v = jax.random.normal(jax.random.key(1), (2, 8, 8, 8, 1))
    t, d = jnp.linspace(0.1, 0.5, 8), jnp.linspace(0.4, 0.2, 8)
    inputs = Inputs(
        apply=experiment.model.apply,
        params=params,
        emas={},
        x1=x,
        labels=jnp.arange(8),
        null_label=10,
        key=jax.random.key(0),
        step=jnp.asarray(0),
        num_steps=1,
    )
    return inputs, [x, t, d, v]


def test_total_derivative_of_the_network() -> None:
    """Du is the central difference along (v, 1, -1); in bfloat16 it is near that in float32.

    A network of bfloat16 has it in float32 all the same, unless the config asks for less.
    """
    derivatives = {}
    for dtype in ("float32", "bfloat16"):
        experiment = Experiment.from_config(tiny_config("meanflow", dtype), jax.devices()[:1])
        inputs, (x, t, d, v) = inputs_for(experiment)
        derivatives[dtype] = jax.jit(
            lambda x, t, d, v, inputs=inputs: mean_velocity.total_derivative(
                inputs, x, t, d, v, inputs.labels
            )
        )(x, t, d, v)
        if dtype == "float32":
            h = 1e-2
            ahead, behind = (
                inputs.apply(inputs.params, x + s * h * v, t + s * h, d - s * h, inputs.labels)
                for s in (1, -1)
            )
            difference = (ahead - behind) / (2 * h)
            scale = float(jnp.sqrt(jnp.mean(difference**2)))
            assert scale > 0.1
            np.testing.assert_allclose(derivatives[dtype], difference, atol=0.01 * scale)
    error = derivatives["bfloat16"] - derivatives["float32"]
    assert 1e-4 * scale < float(jnp.sqrt(jnp.mean(error**2))) < 0.1 * scale
    wide = dataclasses.replace(inputs, differentiable=experiment.model.tangents.apply)
    exact = jax.jit(
        lambda x, t, d, v: mean_velocity.total_derivative(wide, x, t, d, v, inputs.labels)
    )(x, t, d, v)
    np.testing.assert_allclose(exact, derivatives["float32"], rtol=0, atol=1e-6 * scale)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["meanflow", "shortcut"])
def test_the_step_hands_on_what_is_differentiated(name: str, dtype: str) -> None:
    """In model.tangent_dtype, to the methods that take derivatives; traced only."""
    config, handed = tiny_config(name, "bfloat16"), []
    config.model.tangent_dtype = dtype
    experiment = Experiment.from_config(config, jax.devices()[:1])

    class Watched(type(experiment.objective)):
        def loss(self, inputs: Inputs) -> Any:
            handed.append(inputs.differentiable)
            return super().loss(inputs)

    watched = Watched(**vars(experiment.objective))
    experiment = dataclasses.replace(experiment, objective=watched)
    fields = {"mean": (np.float16, (8, 8, 1)), "label": (np.int32, ())}
    rows = experiment.abstract_batch(fields)
    jax.eval_shape(experiment.train_step, experiment.abstract_state, rows)
    found = [network and network.__self__.config.dtype for network in handed]
    assert found == [dtype if name == "meanflow" else None]


def test_extra_parts_exist_only_where_declared() -> None:
    """The condition embedder and the second head are in no network but those that need them."""
    shapes = {
        name: Experiment.from_config(tiny_config(name), jax.devices()[:1]).abstract_state.params
        for name in ("shortcut", "improved_shortcut", "improved_meanflow")
    }
    assert "condition_embed" not in shapes["shortcut"]
    assert list(shapes["improved_shortcut"]["condition_embed"]) == ["guidance"]
    told = ["guidance", "guidance_end", "guidance_start"]
    assert sorted(shapes["improved_meanflow"]["condition_embed"]) == told
    assert [name for name, tree in shapes.items() if "time_embed" not in tree] == [
        "improved_meanflow"
    ]
    outputs = {name: tree["final"]["project"]["bias"].size for name, tree in shapes.items()}
    assert outputs == {"shortcut": 16, "improved_shortcut": 16, "improved_meanflow": 32}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_samples_are_functions_of_seed_and_number(name: str) -> None:
    """Sample 5 is the same whichever others are drawn beside it, and another at another seed."""
    experiment = Experiment.from_config(tiny_config(name), jax.devices()[:1])
    params = seeded_state(experiment).params
    generator = Generator(experiment, load_autoencoder("identity"), seed=0)
    steps = experiment.objective.step_counts((1, 2))[-1]
    many = generator(params, range(8), [3] * 8, steps)
    few = generator(params, [5, 1], [3] * 2, steps)
    np.testing.assert_allclose(few, many[[5, 1]], atol=1e-4 * np.abs(many).max())
    other = Generator(experiment, load_autoencoder("identity"), seed=1)(params, [5], [3], steps)
    assert np.abs(other - many[5]).max() > 0.01 * np.abs(many).max()


def test_guided_sampling() -> None:
    """v_null + w (v - v_null), with conditions told to both halves; nothing at w = 1."""

    def velocity(
        x: jax.Array, t: jax.Array, d: jax.Array, labels: jax.Array, guidance: jax.Array
    ) -> jax.Array:
        value = jnp.where(labels == 10, 100.0, labels) + t + 10 * d + 1000 * guidance
        return x + value[:, None, None, None]

    assert samplers.guided(velocity, 1.0, null_label=10) is velocity
    x, t = jnp.ones((3, 2, 2, 1)), jnp.array([0.1, 0.2, 0.3])
    labels, told = jnp.array([1, 2, 3]), jnp.array([0.0, 0.5, 0.7])
    guided = samplers.guided(velocity, 1.5, null_label=10)(x, t, t, labels, guidance=told)
    null = jnp.full_like(labels, 10)
    v, v_null = (velocity(x, t, t, y, guidance=told) for y in (labels, null))
    np.testing.assert_allclose(guided, v_null + 1.5 * (v - v_null), rtol=1e-6)


@pytest.mark.parametrize("name", ["improved_meanflow", "improved_shortcut"])
def test_guidance_as_a_condition_of_samples(name: str) -> None:
    """The network is told 1 - 1/w of `sample_guidance` on every row and in every step."""
    interval = {"sample_interval": (0.25, 0.875)} if name == "improved_meanflow" else {}
    objective = OBJECTIVES[name](sample_guidance=4.0, **interval)

    def velocity(
        x: jax.Array, t: jax.Array, d: jax.Array, labels: jax.Array, **told: jax.Array
    ) -> jax.Array:
        assert set(told) == set(objective.conditions)
        v = jnp.broadcast_to(sum(told.values())[:, None, None, None], x.shape)
        return jnp.concatenate([v] * objective.heads, axis=-1)

    keys = jax.random.split(jax.random.key(0), 3)
    x1 = objective.sample(velocity, jnp.zeros((3, 2, 2, 1)), jnp.arange(3), 4, keys)
    told = 0.75 + sum(interval.get("sample_interval", ()))
    np.testing.assert_allclose(x1, told, rtol=1e-6)
    with pytest.raises(ValueError, match="sample_guidance"):
        OBJECTIVES[name](sample_guidance=9.0, max_guidance=1.0)


def test_samples_of_alpha_flow() -> None:
    """In two steps x1_hat = x + (1 - t) u(x, t, 1 - t), renoised; in more Euler, told d = 1/n."""

    def velocity(x: jax.Array, t: jax.Array, d: jax.Array, labels: jax.Array) -> jax.Array:
        return jnp.ones_like(x) * (d + 2 * t)[:, None, None, None]

    objective = OBJECTIVES["alpha_flow"]()
    keys, x0 = jax.random.split(jax.random.key(0), 2), jnp.ones((2, 2, 2, 1))
    labels = jnp.zeros(2, int)
    noise = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 0), (2, 2, 1)))(keys)
    halfway = (2 + noise) / 2  # (x_0 + u(x_0, 0, 1)) / 2 + e / 2.
    two = objective.sample(velocity, x0, labels, 2, keys)
    np.testing.assert_allclose(two, halfway + 1.5 / 2, rtol=1e-6)
    four = objective.sample(velocity, x0, labels, 4, keys)
    np.testing.assert_allclose(four, 1 + 1 / 4 + 2 * (0 + 0.25 + 0.5 + 0.75) / 4, rtol=1e-6)


def test_consistency_sampler_renoises() -> None:
    """With x1_hat always 2: (t + h) 2 + (1 - t - h) e, e new in each step, and 2 at the end."""

    def velocity(x: jax.Array, t: jax.Array, d: jax.Array, labels: jax.Array) -> jax.Array:
        return (2 - x) / (1 - t)[:, None, None, None]

    keys = jax.random.split(jax.random.key(0), 2)
    x0 = jnp.zeros((2, 2, 2, 1))
    x1 = samplers.consistency(velocity, x0, jnp.zeros(2, int), 4, keys)
    np.testing.assert_allclose(x1, 2.0, rtol=1e-6)

    def ignorant(x: jax.Array, t: jax.Array, d: jax.Array, labels: jax.Array) -> jax.Array:
        return jnp.where(t[:, None, None, None] < 0.5, (2 - x) / (1 - t)[:, None, None, None], 0.0)

    halfway = samplers.consistency(ignorant, x0, jnp.zeros(2, int), 2, keys)
    noise = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 0), (2, 2, 1)))(keys)
    np.testing.assert_allclose(halfway, 1 + noise / 2, rtol=1e-6)

"""Optimizers and their schedule against their formulas."""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import optax
import pytest

from shortcut_tpu.training.experiment import Experiment
from shortcut_tpu.training.optimizers import make_optimizer, make_schedule


def optimizer_config(**changes):
    optimizer = {
        "learning_rate": 0.01,
        "schedule": "constant",
        "warmup_steps": 0,
        "b1": 0.9,
        "b2": 0.999,
        "weight_decay": 0.1,
        "name": "adamw",
        "momentum": 0.95,
        "mu_dtype": "float32",
        "clip_norm": 0.0,
    }
    return ConfigDict({"optimizer": optimizer | changes, "train": {"num_steps": 100}})


def test_adamw_decays_weights_apart_from_the_gradient():
    """First step: m/sqrt(v) is the gradient's sign, so p <- p - lr (sign(g) + wd p)."""
    optimizer = make_optimizer(optimizer_config())
    params = {"kernel": jnp.array([1.0, -2.0]), "bias": jnp.array([0.5])}
    grads = {"kernel": jnp.array([3.0, -1e-3]), "bias": jnp.array([7.0])}
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.01 * np.array([1 + 0.1, -1 - 0.2]), rtol=1e-4)
    np.testing.assert_allclose(updates["bias"], [-0.01 * (1 + 0.05)], rtol=1e-4)


def test_schedule_warms_up_and_decays_by_a_cosine():
    schedule = make_schedule(optimizer_config(schedule="cosine", warmup_steps=20))
    found = [float(schedule(step)) for step in (0, 10, 20, 60, 100)]
    np.testing.assert_allclose(found, [0, 0.005, 0.01, 0.005, 0], atol=1e-8)
    constant = make_schedule(optimizer_config())
    assert float(constant(0)) == float(constant(99)) == pytest.approx(0.01)
    linear = make_schedule(optimizer_config(schedule="linear", warmup_steps=20))
    np.testing.assert_allclose([linear(20), linear(60), linear(100)], [0.01, 0.005, 0], atol=1e-8)
    with pytest.raises(ValueError, match="schedule='step'"):
        make_schedule(optimizer_config(schedule="step"))


def orthogonalised(matrix: np.ndarray) -> np.ndarray:
    """Muon's five iterations X <- a X + (b A + c A A) X, A = X X^T, from X = G / |G|."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / np.linalg.norm(x)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


def test_muon_orthogonalises_each_matrix_of_each_layer():
    """First step: the momentum is the gradient's direction, so an update is
    -lr (0.2 sqrt(max(in, out)) NS(G) + wd p), with G a layer's matrix: for q, k, v one each, heads
    side by side; all else moves by AdamW
    with Nesterov's momentum."""
    optimizer = make_optimizer(optimizer_config(name="muon"))
    draw = np.random.default_rng(1)
    shapes = {
        "qkv": (2, 8, 3, 2, 4),
        "attention_out": (2, 2, 4, 8),
        "modulation": (2, 8, 6, 8),
        "mlp_in": (2, 8, 32),
        "mlp_out": (2, 32, 8),
        "gate_up": (2, 8, 2, 21),
        "down": (2, 21, 8),
    }
    blocks = {name: {"kernel": draw.normal(size=shape)} for name, shape in shapes.items()}
    blocks["qkv"]["bias"] = draw.normal(size=(2, 3, 2, 4))
    params = {"blocks": blocks, "final": {"project": {"kernel": draw.normal(size=(8, 4))}}}
    grads = jax.tree.map(lambda p: draw.normal(size=p.shape), params)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)

    def expected(name: str, inputs: int) -> np.ndarray:
        """For kernels [layer, ...] whose next axes up to `inputs` values are a matrix's inputs."""
        grad, param = grads["blocks"][name]["kernel"], blocks[name]["kernel"]
        found = np.stack([orthogonalised(g.reshape(inputs, -1)).reshape(g.shape) for g in grad])
        size = 0.2 * max(inputs, grad[0].size // inputs) ** 0.5
        return -0.01 * (size * found + 0.1 * param)

    for name, inputs in (("attention_out", 8), ("mlp_in", 8), ("mlp_out", 32), ("down", 21)):
        np.testing.assert_allclose(
            updates["blocks"][name]["kernel"], expected(name, inputs), atol=2e-5
        )
    for name, parts, size in (("qkv", 3, 8), ("modulation", 6, 8), ("gate_up", 2, 21)):
        grad, param = grads["blocks"][name]["kernel"], blocks[name]["kernel"]
        for layer, part in np.ndindex(2, parts):
            matrix = orthogonalised(grad[layer, :, part].reshape(8, size))
            wanted = 0.2 * size**0.5 * matrix + 0.1 * param[layer, :, part].reshape(8, size)
            found = updates["blocks"][name]["kernel"][layer, :, part].reshape(8, size)
            np.testing.assert_allclose(found, -0.01 * wanted, atol=2e-5)
    # A step ahead: b1 m_1 / (1 - b1^2) + g, with m_1 = (1 - b1) g.
    nesterov = 0.9 * 0.1 / (1 - 0.9**2) + 1
    for path in (("blocks", "qkv", "bias"), ("final", "project", "kernel")):
        grad, param, update = grads, params, updates
        for key in path:
            grad, param, update = grad[key], param[key], update[key]
        np.testing.assert_allclose(
            update, -0.01 * (nesterov * np.sign(grad) + 0.1 * param), rtol=1e-5
        )


def test_adafactor_factors_second_moments():
    """With R and C the means of g^2 over columns and rows, decayed by min(1 - t^-0.8, b2), an
    update is g / sqrt(R C / mean(R)), scaled to a root mean square of at most 1; small arrays are
    whole."""
    optimizer = make_optimizer(optimizer_config(name="adafactor", b1=0.5, b2=0.3))
    draw = np.random.default_rng(2)
    shapes = {"w": (2, 128, 130), "b": (3,)}
    params = {name: draw.normal(size=shape).astype("f") for name, shape in shapes.items()}
    state = optimizer.init(params)
    row, column, whole, moment = np.zeros((2, 128)), np.zeros((2, 130)), np.zeros(3), [0, 0]
    # 1 - 1^-0.8 is 0, 1 - 2^-0.8 is above b2.
    for decay in (0.0, 0.3):
        grads = {name: draw.normal(size=shape).astype("f") for name, shape in shapes.items()}
        updates, state = optimizer.update(grads, state, params)
        square = grads["w"] ** 2
        row = decay * row + (1 - decay) * square.mean(2)
        column = decay * column + (1 - decay) * square.mean(1)
        whole = decay * whole + (1 - decay) * grads["b"] ** 2
        variance = row[:, :, None] * column[:, None] / row.mean(1)[:, None, None]
        for index, (name, v) in enumerate({"w": variance, "b": whole}.items()):
            moved = grads[name] / np.sqrt(v)
            moved /= max(1, np.sqrt(np.mean(moved**2)))
            moment[index] = 0.5 * moment[index] + 0.5 * moved
            wanted = -0.01 * (moment[index] + 0.1 * params[name])
            np.testing.assert_allclose(updates[name], wanted, rtol=2e-5, atol=1e-7)
    with_moment, without = (
        jax.eval_shape(make_optimizer(optimizer_config(name="adafactor", b1=b1)).init, params)
        for b1 in (0.9, 0.0)
    )
    sizes = [sum(a.size for a in jax.tree.leaves(s)) for s in (with_moment, without)]
    assert sizes[0] - sizes[1] >= 2 * 128 * 130 and sizes[1] < 2 * (128 + 130) + 20


def test_gradients_are_clipped_together():
    """Those of norm 10 count as those of norm 5; those of norm 5 stay."""
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    large, small = (
        {"a": jnp.array([6.0]), "b": jnp.array([8.0])},
        {"a": jnp.array([3.0]), "b": jnp.array([4.0])},
    )
    optimizer = make_optimizer(optimizer_config(clip_norm=5.0))
    plain = make_optimizer(optimizer_config())
    moments = [
        optax.tree.get(o.update(g, o.init(params), params)[1], "mu")
        for o, g in ((optimizer, large), (optimizer, small), (plain, small))
    ]
    jax.tree.map(lambda *m: np.testing.assert_allclose(m, [m[0]] * 3, rtol=1e-6), *moments)


def test_first_moments_may_take_half_the_memory():
    params = {"w": jnp.ones(4)}
    state = make_optimizer(optimizer_config(mu_dtype="bfloat16")).init(params)
    assert optax.tree.get(state, "mu")["w"].dtype == jnp.bfloat16
    assert optax.tree.get(state, "nu")["w"].dtype == jnp.float32


def test_an_optimizer_that_is_none_is_refused():
    with pytest.raises(ValueError, match="optimizer.name='sgd' is none of adamw, adafactor, muon"):
        make_optimizer(optimizer_config(name="sgd"))


def test_adafactors_state_lies_where_its_weights_do(tiny_config, devices):
    """The first moments as the weights, the factors of the second whole on every device."""
    config = tiny_config.copy_and_resolve_references()
    with config.unlocked():
        config.optimizer.name, config.mesh.fsdp, config.model.width = "adafactor", 4, 128
    state = Experiment.from_config(config, devices[:4]).abstract_state
    factors, _, moments, *_ = state.opt_state
    weight, moment, row, whole = (
        tree["blocks"]["mlp_in"]["kernel"]
        for tree in (state.params, moments.ema, factors.v_row, factors.v)
    )
    assert moment.sharding == weight.sharding and not weight.sharding.is_fully_replicated
    assert row.shape == (2, 128) and whole.shape == (1,)
    assert row.sharding.is_fully_replicated and whole.sharding.is_fully_replicated
    small = factors.v["blocks"]["mlp_in"]["bias"]
    assert small.shape == state.params["blocks"]["mlp_in"]["bias"].shape
    assert small.sharding == state.params["blocks"]["mlp_in"]["bias"].sharding


def test_muon_updates_alike_on_any_mesh(tiny_config, devices):
    """Moments lie where their weights do, and updates are those of weights that are whole."""
    config = tiny_config.copy_and_resolve_references()
    with config.unlocked():
        config.optimizer.name, config.mesh.fsdp = "muon", 4
    experiment = Experiment.from_config(config, devices[:4])
    state = experiment.init_state()
    moments = state.opt_state.inner_states["muon"].inner_state[0].mu
    moment, weight = (tree["blocks"]["mlp_in"]["kernel"] for tree in (moments, state.params))
    assert moment.sharding == weight.sharding and not weight.sharding.is_fully_replicated

    @jax.jit
    def update(state):
        """With the weights for gradients."""
        return experiment.optimizer.update(state.params, state.opt_state, state.params)[0]

    jax.tree.map(
        lambda split, whole: np.testing.assert_allclose(split, whole, atol=1e-6),
        jax.device_get(update(state)),
        update(jax.device_get(state)),
    )

"""The optimizer, its schedule and the averages against their formulas."""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest

from shortcut_tpu.train_state import ema_distances, make_optimizer, make_schedule, update_emas


def optimizer_config(**changes):
    optimizer = {
        "learning_rate": 0.01,
        "schedule": "constant",
        "warmup_steps": 0,
        "b1": 0.9,
        "b2": 0.999,
        "weight_decay": 0.1,
    }
    return ConfigDict({"optimizer": optimizer | changes, "train": {"num_steps": 100}})


def test_averages_are_geometric_sums():
    """From e_0 with params p constant: e_n = decay^n e_0 + (1 - decay^n) p, each its own decay."""
    emas = {"fast": {"w": jnp.zeros(3)}, "slow": {"w": jnp.ones(3)}}
    decays = {"fast": 0.5, "slow": 0.9}
    for _ in range(4):
        emas = update_emas(emas, {"w": jnp.full(3, 2.0)}, decays)
    np.testing.assert_allclose(emas["fast"]["w"], 2 - 2 * 0.5**4, rtol=1e-6)
    np.testing.assert_allclose(emas["slow"]["w"], 2 - 1 * 0.9**4, rtol=1e-6)


def test_distances_of_averages_are_relative_to_all_weights():
    params = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[0.0, 4.0]])}
    emas = {"near": params, "far": {"a": jnp.array([3.0, 1.0]), "b": jnp.array([[2.0, 2.0]])}}
    found = ema_distances(params, emas)
    # sqrt(1 + 4 + 4) over sqrt(9 + 16).
    assert {name: float(d) for name, d in found.items()} == pytest.approx({"near": 0, "far": 0.6})


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
    with pytest.raises(ValueError, match="schedule='linear'"):
        make_schedule(optimizer_config(schedule="linear"))


def test_a_step_key_depends_on_seed_and_step_alone():
    from shortcut_tpu.train_step import step_key

    def bits(seed, step):
        return tuple(np.asarray(jax.random.key_data(step_key(seed, step))).tolist())

    keys = {bits(seed, step) for seed in range(3) for step in range(3)}
    assert len(keys) == 9
    assert bits(1, 2) == bits(1, jnp.int32(2))

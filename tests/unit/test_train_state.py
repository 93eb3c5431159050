"""The averages against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shortcut_tpu.training.train_state import ema_distances, update_emas


def test_averages_are_geometric_sums():
    """From e_0 with params p constant: e_n = decay^n e_0 + (1 - decay^n) p, each its own decay."""
    emas = {"fast": {"w": jnp.zeros(3)}, "slow": {"w": jnp.ones(3)}}
    decays = {"fast": 0.5, "slow": 0.9}
    for _ in range(4):
        emas = update_emas(emas, {"w": jnp.full(3, 2.0)}, decays, jnp.int32(1))
    np.testing.assert_allclose(emas["fast"]["w"], 2 - 2 * 0.5**4, rtol=1e-6)
    np.testing.assert_allclose(emas["slow"]["w"], 2 - 1 * 0.9**4, rtol=1e-6)


def test_distances_of_averages_are_relative_to_all_weights():
    params = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[0.0, 4.0]])}
    emas = {"near": params, "far": {"a": jnp.array([3.0, 1.0]), "b": jnp.array([[2.0, 2.0]])}}
    found = ema_distances(params, emas)
    # sqrt(1 + 4 + 4) over sqrt(9 + 16).
    assert {name: float(d) for name, d in found.items()} == pytest.approx({"near": 0, "far": 0.6})


def test_a_step_key_depends_on_seed_and_step_alone():
    from shortcut_tpu.training.train_step import step_key

    def bits(seed, step):
        return tuple(np.asarray(jax.random.key_data(step_key(seed, step))).tolist())

    keys = {bits(seed, step) for seed in range(3) for step in range(3)}
    assert len(keys) == 9
    assert bits(1, 2) == bits(1, jnp.int32(2))

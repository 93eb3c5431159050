"""Samplers on problems that can be solved by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from shortcut_tpu.sampling.samplers import euler, guided, second_order

RATE = 0.7
X0 = jnp.linspace(-1, 2, 12).reshape(3, 2, 2, 1)
LABELS = jnp.array([0, 1, 2])


@pytest.mark.parametrize("num_steps", [1, 2, 3, 128])
def test_euler_on_a_linear_field(num_steps):
    """x' = a x by n Euler steps is x_0 (1 + a/n)^n."""
    x1 = euler(lambda x, t, d, y: RATE * x, X0, LABELS, num_steps, 1 / num_steps)
    np.testing.assert_allclose(x1, X0 * (1 + RATE / num_steps) ** num_steps, rtol=1e-5)


@pytest.mark.parametrize("num_steps", [1, 2, 4, 8])
def test_exact_mean_velocity_gives_the_exact_map_at_any_step_count(num_steps):
    """With s = x (e^(a d) - 1) / d every n reaches x_0 e^a: what a shortcut model aims at."""
    d = 1 / num_steps
    x1 = euler(lambda x, t, d, y: x * jnp.expm1(RATE * d[0]) / d[0], X0, LABELS, num_steps, d)
    np.testing.assert_allclose(x1, X0 * np.exp(RATE), rtol=1e-5)


def test_network_is_asked_at_the_start_of_each_step():
    """The sum over n steps of t_i / n is (n - 1) / 2n only if t = 0, 1/n, ..., (n-1)/n."""
    x1 = euler(
        lambda x, t, d, y: jnp.ones_like(x) * t[0] + y[:, None, None, None], X0, LABELS, 4, 1
    )
    expected = X0 + 3 / 8 + LABELS[:, None, None, None]
    np.testing.assert_allclose(x1, expected, rtol=1e-6)


@pytest.mark.parametrize("num_steps", [1, 3, 8])
def test_second_order_is_exact_for_a_constant_acceleration(num_steps):
    """x'' = g, x'(0) = v: x_0 + v + g / 2 at any n, where Euler misses g / 2n."""

    def network(x, t, d, labels):
        g = jnp.ones_like(x) * (2 + labels[:, None, None, None])
        return jnp.concatenate([0.5 + g * t[:, None, None, None], g], axis=-1)

    g = (2 + LABELS)[:, None, None, None]
    x1 = second_order(network, X0, LABELS, num_steps, 1 / num_steps)
    np.testing.assert_allclose(x1, X0 + 0.5 + g / 2, rtol=1e-5)


@pytest.mark.parametrize("num_steps", [1, 4])
def test_second_order_on_a_linear_field(num_steps):
    """x' = a x and x'' = a^2 x: n steps are (1 + a/n + (a/n)^2 / 2)^n; told d on every row."""

    def network(x, t, d, labels):
        np.testing.assert_array_equal(d.shape, (3,))
        return jnp.concatenate([RATE * x, RATE**2 * x * (d == 0.25)[:, None, None, None]], axis=-1)

    h = RATE / num_steps
    x1 = second_order(network, X0, LABELS, num_steps, 0.25)
    np.testing.assert_allclose(x1, X0 * (1 + h + h**2 / 2) ** num_steps, rtol=1e-5)


def test_guided_velocity_extrapolates_from_the_null_label():
    """v_null + w (v - v_null), v = label, v_null = 9."""

    def velocity(x, t, d, labels):
        return labels[:, None, None, None] * jnp.ones_like(x)

    v = guided(velocity, 3.0, null_label=9)(X0, jnp.zeros(3), jnp.zeros(3), LABELS)
    np.testing.assert_allclose(v[:, 0, 0, 0], 9 + 3.0 * (LABELS - 9))


def test_a_guidance_of_one_costs_nothing():
    def velocity(x, t, d, labels):
        return x

    assert guided(velocity, 1.0, null_label=9) is velocity

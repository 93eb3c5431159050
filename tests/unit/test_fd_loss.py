"""Post-training by Frechet distances, against closed forms and float64.

A generator that is linear in its noise makes Gaussians, whose Frechet distance and its gradient are
known; features are the values themselves.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shortcut_tpu.evaluation.distances import Gaussian, frechet_distance
from shortcut_tpu.objectives import OBJECTIVES, Inputs, Judge, make_objective
from shortcut_tpu.objectives.fd_loss import FDLoss
from shortcut_tpu.objectives.frechet import Real, distance, orthogonal_factor

VALUES, ROWS = 2, 4096


def values(weights, x1):
    """The features of a judge that looks at the values."""
    return x1.reshape(len(x1), -1)


def linear(params, x, t, d, labels):
    """One Euler step from x_0 gives std x_0 + mean."""
    return params["mean"] + (params["std"] - 1) * x


def judge(mean, covariance):
    return Judge("values", values, {}, Real.of(np.asarray(mean), np.asarray(covariance)))


def inputs(params, judges, carried, seed=0):
    return Inputs(
        apply=linear,
        params=params,
        emas={},
        x1=jnp.zeros((ROWS, 1, 1, VALUES)),
        labels=jnp.zeros(ROWS, jnp.int32),
        null_label=1,
        key=jax.random.key(seed),
        step=jnp.zeros((), jnp.int32),
        num_steps=1,
        judges=judges,
        carried=carried,
    )


def test_the_loss_of_a_linear_generator_and_its_gradient_are_the_closed_forms():
    """N(m, s^2) to N(0, r^2) in each value: FD = sum m^2 + (s - r)^2, dFD/dm = 2 m,
    dFD/ds = 2 (s - r); the loss is FD / (FD + e)."""
    real = np.array([0.5, 2.0])
    params = {"mean": jnp.array([0.3, -1.0]), "std": jnp.array([0.8, 1.5])}
    objective = FDLoss(decay=0.0, epsilon=0.5)
    judges = [judge(np.zeros(2), np.diag(real**2))]
    carried = objective.first_carried(judges)

    def loss(params):
        found = objective.loss_carrying(inputs(params, judges, carried))
        return found[0], found[1:]

    (value, (metrics, after)), slope = jax.value_and_grad(loss, has_aux=True)(params)
    # With the noise's own mean and covariance in place of 0 and 1 it is exact.
    made = np.asarray(params["mean"] + params["std"] * noise(), np.float64)
    mean, covariance = made.mean(0), np.cov(made, rowvar=False, bias=True)
    exact = frechet_distance(Gaussian(mean, covariance), Gaussian(np.zeros(2), np.diag(real**2)))
    assert float(metrics["distance_values"]) == pytest.approx(exact, rel=1e-4)
    assert float(value) == pytest.approx(exact / (exact + 0.5), rel=1e-4)
    closed = np.square(params["mean"]).sum() + np.square(params["std"] - real).sum()
    assert exact == pytest.approx(float(closed), rel=0.1)
    # Sampling noise of 1 / sqrt(ROWS).
    for name, expected in (("mean", params["mean"]), ("std", params["std"] - real)):
        np.testing.assert_allclose(slope[name] * (exact + 0.5), 2 * expected, atol=0.1)
    np.testing.assert_allclose(after["values"]["mean"], mean / real, rtol=1e-3, atol=1e-4)


def noise():
    """What the objective draws with the key of `inputs`."""
    return jax.random.normal(jax.random.split(jax.random.key(0))[0], (ROWS, VALUES))


def test_moments_are_averages_that_start_at_the_real_ones():
    """m_n = b^n 0 + sum (1 - b) b^(n - i) mean_i, and the same of second moments, from 1; the
    gradient is that of (1 - b) times the newest."""
    objective, steps = FDLoss(decay=0.75), 3
    judges = [judge(np.zeros(2), np.eye(2))]
    params = {"mean": jnp.array([2.0, 0.0]), "std": jnp.ones(2)}
    carried = objective.first_carried(judges)
    means, seconds = [np.zeros(2)], [np.eye(2)]
    for seed in range(steps):
        draw = jax.random.split(jax.random.key(seed))[0]
        made = np.asarray(params["mean"] + jax.random.normal(draw, (ROWS, VALUES)), np.float64)
        means.append(0.75 * means[-1] + 0.25 * made.mean(0))
        seconds.append(0.75 * seconds[-1] + 0.25 * made.T @ made / ROWS)
        given = inputs(params, judges, carried, seed)
        slope = jax.grad(
            lambda p, given=given: objective.loss(dataclasses.replace(given, params=p))[0]
        )(params)
        _, metrics, carried = objective.loss_carrying(given)
    np.testing.assert_allclose(carried["values"]["mean"], means[-1], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(carried["values"]["second"], seconds[-1], rtol=1e-4, atol=1e-4)
    covariance = seconds[-1] - np.outer(means[-1], means[-1])
    exact = frechet_distance(Gaussian(means[-1], covariance), Gaussian(np.zeros(2), np.eye(2)))
    assert float(metrics["distance_values"]) == pytest.approx(exact, rel=1e-3)
    # All rows are moved alike: the mean by 1 - b, second moments by (1 - b)(e m^T + m e^T), and
    # FD by 2 m - T m for the former and the latter's trace.
    step = 1e-4
    moved = np.array([step, 0])
    last = made.mean(0)
    mean = means[-1] + 0.25 * moved
    second = seconds[-1] + 0.25 * (np.outer(moved, last) + np.outer(last, moved))
    after = frechet_distance(
        Gaussian(mean, second - np.outer(mean, mean)), Gaussian(np.zeros(2), np.eye(2))
    )
    expected = (after - exact) / step / (exact + 0.01)
    assert float(slope["mean"][0]) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("spread", [1, 5])
def test_distance_and_gradient_are_those_in_float64(spread):
    """Of covariances whose variances differ by 10^(spread + 1), where float32 loses their product:
    dFD/dC = 1 - T, T = C_r^(1/2) (C_r^(1/2) C C_r^(1/2))^(-1/2) C_r^(1/2)."""
    size, rng = 48, np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(size, size)))[0]
    variances = np.logspace(1, -spread, size)
    covariance, mean = (axes * variances) @ axes.T, rng.normal(size=size)
    half = axes * np.sqrt(variances)
    mixed = np.eye(size) + 0.2 * rng.normal(size=(size, size)) / np.sqrt(size)
    made = half @ mixed @ mixed.T @ half.T
    made_mean = mean + half @ rng.normal(size=size) * 0.1
    exact = frechet_distance(Gaussian(made_mean, made), Gaussian(mean, covariance))

    real = Real.of(mean, covariance)
    basis = np.asarray(real.basis, np.float64)
    m, second = (made_mean - mean) @ basis, basis.T @ made @ basis
    second = second + np.outer(m, m)
    arguments = (jnp.asarray(m, jnp.float32), jnp.asarray(second, jnp.float32))
    found, slope = jax.jit(jax.value_and_grad(lambda *moments: distance(real, *moments), 1))(
        *arguments
    )
    assert float(found) == pytest.approx(exact, rel=2e-3, abs=1e-4)
    root = (axes * np.sqrt(variances)) @ axes.T
    values, vectors = np.linalg.eigh(root @ made @ root)
    transport = root @ (vectors / np.sqrt(values)) @ vectors.T @ root
    back = (axes * np.sqrt(variances)).T
    expected = back @ (np.eye(size) - transport) @ back.T
    # In units of each direction's own variance: small directions count as much as large ones.
    unit = np.sqrt(np.outer(variances, variances)[::-1, ::-1])
    flipped = np.asarray(slope, np.float64)
    order = np.argsort(np.asarray(real.unit))
    aligned = np.abs(basis.T @ half)[order]
    assert np.allclose(aligned, np.eye(size)[::-1], atol=1e-3)
    signs = np.sign((basis.T @ half)[::1].sum(1))
    expected = expected[::-1, ::-1] * np.outer(signs, signs)
    error = np.abs((flipped - expected) / unit).max()
    assert error < 5e-3 * np.abs(expected / unit).max()


def test_the_orthogonal_factor_is_that_of_the_singular_value_decomposition():
    """A = W S Z^T has U = W Z^T at any scale; values below 10^-6 of the largest count less."""
    rng = np.random.default_rng(1)
    left, right = (np.linalg.qr(rng.normal(size=(16, 16)))[0] for _ in range(2))
    for scale in (1e-6, 1.0, 1e6):
        matrix = scale * (left * np.logspace(0, -4, 16)) @ right.T
        found = orthogonal_factor(jnp.asarray(matrix, jnp.float32))
        np.testing.assert_allclose(found, left @ right.T, atol=2e-3)
    flat = (left * np.r_[np.ones(8), np.zeros(8)]) @ right.T
    values = np.linalg.svd(orthogonal_factor(jnp.asarray(flat, jnp.float32)), compute_uv=False)
    np.testing.assert_allclose(values[:8], 1, atol=1e-4)
    assert values[8:].max() < 0.5


def test_collapsed_samples_have_a_finite_gradient():
    """Samples that do not vary at all, and real features that are flat in one direction."""
    real = Real.of(np.zeros(3), np.diag([4.0, 1.0, 0.0]))
    value, slope = jax.value_and_grad(lambda second: distance(real, jnp.zeros(3), second))(
        jnp.zeros((3, 3))
    )
    # tr C_r is that of a point, which the ridge takes for a spread of 0.3 % of the data's.
    assert float(value) == pytest.approx(5, rel=0.01)
    assert bool(jnp.isfinite(slope).all())
    # 4 (1 - 1 / 0.3 %), in the direction of the largest variance, which comes last.
    assert -1500 < float(slope[2, 2]) < -1000


def test_it_trains_the_network_and_samples_as_the_generator_does():
    """Conditions, heads and sampler are those of the objective that the weights are of."""
    config = {name: {} for name in {objective.group for objective in OBJECTIVES.values()}}
    config["improved_meanflow"] = {"sample_guidance": 4.0}
    config |= {"name": "fd_loss", "fd_loss": {"generator": "improved_meanflow"}}
    objective, trained = (
        make_objective(config),
        OBJECTIVES["improved_meanflow"](sample_guidance=4.0),
    )
    for trait in ("conditions", "heads", "network", "smooth_times", "told_time"):
        assert getattr(objective, trait) == getattr(trained, trait)

    def velocity(x, t, d, labels, guidance, **conditions):
        u = x * guidance[:, None, None, None]
        return jnp.concatenate([u, 0 * u], -1)

    keys = jax.random.split(jax.random.key(0), 2)
    made = [
        each.sample(velocity, jnp.ones((2, 1, 1, 1)), jnp.zeros(2, jnp.int32), 1, keys)
        for each in (objective, trained)
    ]
    # x_0 + u, told 1 - 1/4.
    np.testing.assert_allclose(made, 1.75)
    with pytest.raises(ValueError, match="empty, or one for each protocol"):
        FDLoss(protocols=("fd_pixel", "adm"), references=("a.npz",))

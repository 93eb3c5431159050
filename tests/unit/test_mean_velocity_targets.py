"""The targets of MeanFlow's family on the Gaussian problem, against its closed forms in float64."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shortcut_tpu.objectives import (
    alpha_flow,
    base,
    improved_meanflow,
    mean_velocity,
    meanflow,
    shortcut,
    split_meanflow,
)
from tests.unit.gaussian import NULL_LABEL
from tests.unit.points import PROBLEM, ROWS, Points, assert_equal

pytestmark = pytest.mark.usefixtures("float64")


def test_meanflow() -> None:
    """v + d Du = u, with D the derivative along the path at a fixed end."""
    p = Points()
    targets = meanflow.MeanFlow().targets(p.inputs, p.xt, p.t, p.d, p.v, p.labels)
    assert_equal(targets, p.u)


def test_meanflow_is_linear_in_the_velocity() -> None:
    """With x_1 - x_0 in the place of v the target's mean given x_t is still u."""
    x0, x1 = PROBLEM.pairs(400_000)
    t, d = jnp.full(len(x0), 0.3), jnp.full(len(x0), 0.5)
    xt = base.path(x0, x1, t, sigma_min=0.0)
    labels = jnp.zeros(len(x0), jnp.int32)
    targets = meanflow.MeanFlow().targets(PROBLEM.inputs(x1), xt, t, d, x1 - x0, labels)
    error = targets - PROBLEM.mean_velocity(xt, t, d)
    assert abs(float(jnp.mean(error))) < 5e-3
    assert abs(float(jnp.mean(error * xt))) < 5e-3


def test_meanflow_weighs_short_intervals_first() -> None:
    """1 - s + s (1 - d) / E[1 - d] with s = 1 - i/T, after the adaptive weight, which a huge
    epsilon makes the same for all; flow rows as they are."""
    count, changes = 4096, {"interval_share": 0.5, "weight_epsilon": 1e12}
    plain, short = (meanflow.MeanFlow(short_first=on, **changes) for on in (False, True))
    _, x1 = PROBLEM.pairs(count)
    inputs = PROBLEM.inputs(x1, apply=lambda params, x, *_: 0 * x, step=jnp.asarray(25))
    points = plain.points(inputs)
    d, error = np.asarray(points.d), np.asarray(base.sum_square(points.v))
    weight = 0.25 + 0.75 * (1 - d) / (1 - mean_velocity.mean_interval(-0.4, 1.0))
    wanted = np.mean(np.where(d > 0, weight, 1) * error)
    losses = [float(objective.loss(inputs)[0]) * 1e12 for objective in (plain, short)]
    assert losses == pytest.approx([error.mean(), wanted], rel=1e-6)
    # At the start the mean weight is 1, and in the end each.
    drawn = plain.kinds.take(plain.draw_intervals(jax.random.key(5), 400_000)[1])
    first, last = (short.interval_weight(drawn, jnp.asarray(step), 100) for step in (0, 100))
    assert float(jnp.mean(first)) == pytest.approx(1, abs=2e-3) and (last == 1).all()
    assert short.scheduled and not plain.scheduled
    with pytest.raises(ValueError, match="short_first=True: it may be False where time_exponent"):
        meanflow.MeanFlow(short_first=True, time_exponent=4.0)


def test_meanflow_on_pairs_takes_their_noise_and_times() -> None:
    """x_t = (1 - t) x_0 + t x_1 of the pair; P(t < s) = (F(s) + 1 - F(1 - s)) / 2 with F(s) =
    (exp(4 s) - 1) / (exp(4) - 1); intervals of sigmoid(N(-.8, 1)) within [t, 1]."""
    objective = meanflow.MeanFlow(time_exponent=4.0, time_mean=-0.8, interval_share=0.5)
    x0, x1 = PROBLEM.pairs(ROWS)
    p = objective.points(PROBLEM.inputs(x1, x0=x0))
    assert_equal(p.xt, base.path(x0, x1, p.t, sigma_min=0.0))
    assert_equal(p.v, x1 - x0)
    t, d = map(np.asarray, objective.draw_intervals(jax.random.key(1), 200_000))
    for s in (0.1, 0.4, 0.7):
        below = (np.expm1(4 * s) + np.expm1(4) - np.expm1(4 * (1 - s))) / (2 * np.expm1(4))
        assert np.mean(t < s) == pytest.approx(below, abs=5e-3)
    assert not d[1::2].any()
    t, d = t[::2], d[::2]
    assert (t + d).max() <= 1 + 1e-12 and d.min() > 0
    early = t < 0.2
    assert not ((t + d)[early] > 0.6 + 1e-9)[(t + d)[early] < 1 - 1e-9].any()
    # Between the ends nothing bounds it: the median of the lengths is sigmoid(-.8).
    middle = (t > 0.2) & (t < 0.25)
    assert np.median(d[middle]) == pytest.approx(1 / (1 + np.exp(0.8)), abs=0.02)


def test_improved_meanflow() -> None:
    """u - d Du = v, so that a network that is right predicts the velocity."""
    p = Points()
    objective = improved_meanflow.ImprovedMeanFlow()
    inputs = PROBLEM.inputs(p.x1, apply=two_heads)
    compound = objective.compound(inputs, p.u, p.xt, p.t, p.d, p.v, p.labels, {})
    assert_equal(compound, p.v)


def two_heads(
    params: Any, x: jax.Array, t: jax.Array, d: jax.Array, labels: Any, **conditions: Any
) -> jax.Array:
    """The exact field from the first head, the exact velocity from the second."""
    return jnp.concatenate([PROBLEM.mean_velocity(x, t, d), PROBLEM.velocity(x, t)], axis=-1)


def test_improved_meanflow_guides_with_the_second_head() -> None:
    """v_g = v + (1 - 1/w') (v_c(w') - v_null(1)), w' = w if start <= t <= end else 1.

    The network is asked as at flow rows, d = 0 and guided at all times. v_c is that of w', too.
    """
    p = Points()

    def network(
        params: Any,
        x: jax.Array,
        t: jax.Array,
        d: jax.Array,
        labels: jax.Array,
        guidance: jax.Array,
        guidance_start: jax.Array,
        guidance_end: jax.Array,
    ) -> jax.Array:
        assert not d.any() and not guidance_start.any() and (guidance_end == 1).all()
        value = 10.0 * (labels == NULL_LABEL) + guidance
        v = jnp.broadcast_to(base.along_rows(value, x), x.shape)
        return jnp.concatenate([jnp.full_like(x, jnp.nan), v], axis=-1)

    told = {
        "guidance": jnp.linspace(0, 0.8, ROWS),
        "guidance_start": jnp.full(ROWS, 0.3),
        "guidance_end": jnp.full(ROWS, 0.6),
    }
    v_g, v_c = improved_meanflow.ImprovedMeanFlow().velocities(
        PROBLEM.inputs(p.x1, apply=network), p.xt, p.t, p.v, p.labels, told
    )
    t, w = np.asarray(p.t), np.asarray(1 / (1 - told["guidance"]))
    inside = (t >= 0.3) & (t <= 0.6)
    assert 0 < inside.sum() < ROWS
    strength = (1 - 1 / np.where(inside, w, 1.0))[:, None, None, None]
    assert_equal(v_c, np.broadcast_to(strength, p.v.shape))
    assert_equal(v_g, np.asarray(p.v) + strength * (strength - 10))


def test_improved_meanflow_conditions() -> None:
    """start ~ U[0, 1/2], end ~ U[1/2, 1], w = 8^U; flow rows, d = 0, are guided at all times."""
    objective = improved_meanflow.ImprovedMeanFlow()
    told = objective.draw_conditions(jax.random.key(0), 8000)
    start, end = np.asarray(told["guidance_start"]), np.asarray(told["guidance_end"])
    assert not start[1::2].any() and (end[1::2] == 1).all()
    thirds = np.linspace(0, 0.5, 6)
    np.testing.assert_allclose(np.quantile(start[::2], 2 * thirds), thirds, atol=0.02)
    np.testing.assert_allclose(np.quantile(end[::2], 2 * thirds), 0.5 + thirds, atol=0.02)
    log_w = -np.log(1 - np.asarray(told["guidance"])) / np.log(8)
    np.testing.assert_allclose(np.quantile(log_w, 2 * thirds), 2 * thirds, atol=0.02)
    with pytest.raises(ValueError, match="sample_interval"):
        improved_meanflow.ImprovedMeanFlow(sample_interval=(0.6, 1.0))


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_labels_are_dropped_on_flow_rows_only(share: float) -> None:
    """A tenth of all rows, none of them with an interval; alpha-Flow's at guided times only."""
    count = 40_000
    _, x1 = PROBLEM.pairs(count)
    inputs = PROBLEM.inputs(x1)
    key, t = jax.random.key(2), jax.random.uniform(jax.random.key(3), (count,))
    objective = meanflow.MeanFlow(interval_share=share)
    dropped = np.asarray(objective.drop_labels(key, inputs, t) == NULL_LABEL)
    assert not objective.kinds.take(dropped).any()
    assert dropped.mean() == pytest.approx(0.1, abs=0.006)

    ours = alpha_flow.AlphaFlow(interval_share=share, guidance_interval=(0.25, 1.0))
    dropped = np.asarray(ours.drop_labels(key, inputs, t) == NULL_LABEL)
    assert not dropped[t < 0.25].any()
    for rows_of in (ours.kinds.take, ours.kinds.rest):
        inside = np.asarray(rows_of(t) > 0.25)
        assert rows_of(dropped)[inside].mean() == pytest.approx(0.1, abs=0.015)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_times_of_flow_rows(share: float) -> None:
    """MeanFlow's flow rows have the noisier of two draws, alpha-Flow's a single one.

    The means, in the papers' time: E[max] = .535 and E = .418, here by numpy's own draws. The share
    of rows with d > 0 is the asked one.
    """
    draws = 1 / (1 + np.exp(0.4 - np.random.default_rng(0).normal(size=(2, 200_000))))
    means = {meanflow.MeanFlow: draws.max(0).mean(), alpha_flow.AlphaFlow: draws.mean()}
    for kind, mean in means.items():
        objective = kind(interval_share=share)
        t, d = (np.asarray(a) for a in objective.draw_intervals(jax.random.key(0), 40_000))
        assert (d > 0).mean() == share
        assert (1 - t)[d == 0].mean() == pytest.approx(mean, abs=0.005)
        assert (1 - t)[d > 0].mean() == pytest.approx(draws.max(0).mean(), abs=0.005)


@pytest.mark.parametrize("mix", [0.0, 0.4])
def test_guidance_in_the_target_of_meanflow(mix: float) -> None:
    """v_g = w v + (1 - w - k) u_null + k u_label at guided times on labelled rows, v on others.

    alpha-Flow's rows without a label are guided, too: w v + (1 - w) u_null.
    """
    p = Points()

    def network(
        params: Any, x: jax.Array, t: jax.Array, d: jax.Array, labels: jax.Array
    ) -> jax.Array:
        assert not d.any()
        return PROBLEM.mean_velocity(x, t, d) + base.along_rows(10.0 * (labels == NULL_LABEL), x)

    labels = jnp.where(jnp.arange(ROWS) % 3 == 0, NULL_LABEL, 0)
    inputs = PROBLEM.inputs(p.x1, apply=network)
    v = p.x1 - p.x0
    has_label, inside = (
        base.along_rows(rows, v) for rows in (labels == 0, (p.t >= 0.2) & (p.t <= 0.7))
    )
    guided = 3.0 * v + (1 - 3.0 - mix) * (p.v + 10) + mix * jnp.where(has_label, p.v, p.v + 10)
    for null_too in (False, True):
        ours = meanflow.mean_velocity.guided_velocity(
            inputs,
            p.xt,
            p.t,
            v,
            labels,
            guidance=3.0,
            mix=mix,
            interval=(0.2, 0.7),
            null_too=null_too,
        )
        assert_equal(ours, jnp.where(inside & (has_label | null_too), guided, v))


@pytest.mark.parametrize(
    "kind", [meanflow.MeanFlow, alpha_flow.AlphaFlow, split_meanflow.SplitMeanFlow]
)
def test_flow_rows_learn_the_guided_velocity(kind: Any) -> None:
    """Their errors are 0 for a network of d = 0 that is v_g, in which w and the interval count."""
    _, x1 = PROBLEM.pairs(ROWS)
    objective = kind(guidance=3.0, guidance_interval=(0.5, 1.0), label_dropout=0.0)
    inputs = PROBLEM.inputs(x1, apply=lambda p, x, t, d, y: jnp.zeros_like(x))
    p = objective.points(inputs)
    _, metrics = objective.loss(inputs)
    # u_null is 0 here, so v_g is w (x_1 - x_0) at guided times.
    noise_key = jax.random.split(inputs.key, 4)[0]
    v = np.asarray(x1 - jax.random.normal(noise_key, x1.shape))
    w = np.where(np.asarray(p.t) >= 0.5, 3.0, 1.0)
    errors = ((w[:, None, None, None] * v) ** 2).mean((1, 2, 3))
    flow = np.asarray(p.d) == 0
    np.testing.assert_allclose(metrics["loss_velocity"], errors[flow], rtol=1e-9)


def test_alpha_flow() -> None:
    """On one straight step a d v exactly; the limit a -> 0 is MeanFlow, a = 1 flow matching."""
    p = Points()
    objective = alpha_flow.AlphaFlow(clip=0.0)

    def targets(alpha: float, v: jax.Array) -> jax.Array:
        return objective.targets(p.inputs, jnp.asarray(alpha), p.xt, p.t, p.d, v, p.labels)

    assert_equal(targets(1.0, p.x1 - p.x0), p.x1 - p.x0)
    v = p.x1 - p.x0
    mean_flow = meanflow.MeanFlow().targets(p.inputs, p.xt, p.t, p.d, v, p.labels)
    assert_equal(targets(0.0, v), mean_flow)
    # (target - u) / alpha is MeanFlow's error to first order in alpha.
    small = (targets(1e-6, v) - p.u) / 1e-6
    np.testing.assert_allclose(small, mean_flow - p.u, atol=1e-4)
    # Only the discrete targets are clipped.
    objective = alpha_flow.AlphaFlow(clip=0.1)
    assert_equal(targets(0.0, v), mean_flow)
    assert_equal(jnp.max(jnp.abs(targets(0.5, v))), 0.1)
    objective = alpha_flow.AlphaFlow(clip=0.0)
    # With the mean velocity up to the middle point in the place of v, it is consistent at every a.
    for alpha in (0.1, 0.5, 0.9):
        assert_equal(targets(alpha, PROBLEM.mean_velocity(p.xt, p.t, alpha * p.d)), p.u)


def test_alpha_flow_at_one_half_is_shortcut() -> None:
    """a = 1/2 with v = u(x, t, d/2) is Shortcut's target, row for row, for a network that is wrong.

    On the exact field both would be u; a field that is not consistent tells them apart.
    """
    p = Points()

    def network(
        params: Any, x: jax.Array, t: jax.Array, d: jax.Array, labels: jax.Array
    ) -> jax.Array:
        t, d = base.along_rows(t, x), base.along_rows(d, x)
        return jnp.sin(3 * x + 5 * t) + d * x

    inputs = PROBLEM.inputs(p.x1, apply=network)
    reference = shortcut.Shortcut(clip=0.9)
    levels = reference.levels(ROWS, 0)
    d, t = 2.0**-levels, jnp.floor(p.t * 2.0**levels) / 2.0**levels
    v = network(None, p.xt, t, d / 2, p.labels)
    ours = alpha_flow.AlphaFlow(clip=0.0).targets(inputs, jnp.asarray(0.5), p.xt, t, d, v, p.labels)
    unclipped = dataclasses.replace(reference, clip=0.0)
    assert_equal(ours, unclipped.targets(inputs, p.xt, t, levels, p.labels))


@pytest.mark.parametrize("split", [0.0, 0.3, 1.0])
def test_split_meanflow(split: float) -> None:
    """l u(x, t, l d) + (1 - l) u(x_s, t + l d, (1 - l) d) = u(x, t, d), whatever the split l."""
    p = Points()
    targets = split_meanflow.SplitMeanFlow().targets(
        p.inputs, p.xt, p.t, p.d, jnp.full(ROWS, split), p.labels
    )
    assert_equal(targets, p.u)

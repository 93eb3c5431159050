"""The targets of every method on the Gaussian problem, against its closed forms in float64."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shortcut_tpu.objectives import (
    OBJECTIVES,
    alpha_flow,
    base,
    consistency_training,
    diffusion,
    high_order,
    improved_meanflow,
    improved_shortcut,
    live_reflow,
    meanflow,
    reflow,
    shortcut,
    split_meanflow,
)
from shortcut_tpu.sampling import samplers
from tests.unit import test_distillation_targets
from tests.unit.gaussian import NULL_LABEL
from tests.unit.points import PROBLEM, ROWS, Points, assert_equal

pytestmark = pytest.mark.usefixtures("float64")


def test_problem() -> None:
    """u d = x_{t+d} - x_t; u(d -> 0) = v; and a long Euler integration of v arrives at the flow."""
    p = Points()
    end = PROBLEM.flow(p.xt, p.t, p.t + p.d)
    assert_equal(p.xt + base.along_rows(p.d, p.xt) * p.u, end)
    assert_equal(PROBLEM.mean_velocity(p.xt, p.t, jnp.zeros(ROWS)), p.v)
    x, steps = p.xt, 20_000

    def step(x: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        t = p.t + (i + 0.5) / steps * p.d
        return x + base.along_rows(p.d, x) / steps * PROBLEM.velocity(x, t), None

    x, _ = jax.lax.scan(step, x, jnp.arange(steps))
    np.testing.assert_allclose(x, end, atol=1e-4)


def test_problem_velocity_is_the_regression_of_the_pairs() -> None:
    """E[x_1 - x_0 | x_t] = v(x_t, t): the error of the regression is not correlated with x_t."""
    x0, x1 = PROBLEM.pairs(400_000)
    t = jnp.full(len(x0), 0.3)
    xt = base.path(x0, x1, t, sigma_min=0.0)
    error = x1 - x0 - PROBLEM.velocity(xt, t)
    assert abs(float(jnp.mean(error))) < 5e-3
    assert abs(float(jnp.mean(error * xt))) < 5e-3


def test_shortcut() -> None:
    """(u(x, t, d) + u(x', t + d, d)) / 2 with x' = x + d u(x, t, d) is u(x, t, 2d)."""
    p = Points()
    objective = shortcut.Shortcut(clip=0.0)
    levels = objective.levels(ROWS, 0)
    t = jnp.floor(p.t * 2.0**levels) / 2.0**levels
    targets = objective.targets(p.inputs, p.xt, t, levels, p.labels)
    assert_equal(targets, PROBLEM.mean_velocity(p.xt, t, 2.0**-levels))


def test_improved_shortcut() -> None:
    """Bootstrap rows as in Shortcut; guided rows v + (w - 1) (s_c - s_null), v alone before t = .3
    and without a label."""
    p = Points()
    objective = improved_shortcut.ImprovedShortcut(clip=0.0)
    told = jnp.linspace(0, 0.9, ROWS)
    targets = objective.bootstrap_targets(p.inputs, p.xt, p.t, p.d, p.labels, told)
    assert_equal(targets, p.u)

    def network(
        params: Any, x: jax.Array, t: jax.Array, d: jax.Array, labels: Any, guidance: jax.Array
    ) -> jax.Array:
        assert (d == 1 / 128).all() and not guidance.any()
        return PROBLEM.velocity(x, t) + base.along_rows(3.0 * (labels == NULL_LABEL), x)

    labels = jnp.where(jnp.arange(ROWS) % 3 == 0, NULL_LABEL, 0)
    guided = (labels == 0) & (p.t >= 0.3)
    more = jnp.where(guided, 1 / (1 - told) - 1, 0)[:, None, None, None]
    inputs = PROBLEM.inputs(p.x1, apply=network)
    x1_x0 = p.x1 - p.x0
    found = objective.guided_targets(inputs, p.xt, p.t, x1_x0, labels, told)
    assert_equal(found, x1_x0 - 3 * more)


def test_guidance_of_improved_shortcut_adds_no_noise() -> None:
    """Var[target | x_t] is that of x_1 - x_0 at every w; of w (x_1 - x_0) + ... it is w^2 times."""
    x0, x1 = PROBLEM.pairs(100_000)
    t = jnp.full(len(x0), 0.5)
    xt, labels = base.path(x0, x1, t, sigma_min=0.0), jnp.zeros(len(x0), jnp.int32)
    objective = improved_shortcut.ImprovedShortcut()
    spreads = [
        float(
            jnp.var(
                objective.guided_targets(
                    PROBLEM.inputs(x1), xt, t, x1 - x0, labels, jnp.full(len(x0), 1 - 1 / w)
                )
                - PROBLEM.velocity(xt, t)
            )
        )
        for w in (1.0, 4.5)
    ]
    assert spreads[1] == pytest.approx(spreads[0], rel=1e-6)


def test_rows_of_improved_shortcut() -> None:
    """Of four rows one bootstraps; the others are plain, told w = 1, and guided in turns. The loss
    is the sum of the three means."""
    told: list[np.ndarray] = []

    def network(
        params: Any, x: jax.Array, t: jax.Array, d: jax.Array, labels: Any, guidance: jax.Array
    ) -> jax.Array:
        told.append(np.asarray(guidance))
        return PROBLEM.mean_velocity(x, t, d)

    _, x1 = PROBLEM.pairs(ROWS)
    objective = improved_shortcut.ImprovedShortcut()
    assert objective.row_stride == 8
    loss, metrics = objective.loss(PROBLEM.inputs(x1, apply=network))
    flow = told[-1].reshape(-1, 4)[:, 1:].reshape(-1, 2)
    assert (flow[:, 0] > 0).all() and not flow[:, 1].any()
    assert (told[-1] <= 1 - 1 / 4.5).all()
    kinds = ("loss_flow", "loss_guided", "loss_bootstrap")
    assert [metrics[kind].size for kind in kinds] == [24, 24, 16]
    assert_equal(loss, sum(metrics[kind].mean() for kind in kinds))


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
    _, x1 = PROBLEM.pairs(8)
    inputs = PROBLEM.inputs(x1, labels=jnp.zeros(count, jnp.int32))
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


def test_reflow() -> None:
    """Rows of flow matching on pairs: t in {0 .. 127}/128, a tenth of the labels dropped."""
    seen: dict[str, np.ndarray] = {}

    def network(
        params: Any, x: jax.Array, t: jax.Array, d: jax.Array, labels: jax.Array
    ) -> jax.Array:
        seen.update(x=np.asarray(x), t=np.asarray(t), labels=np.asarray(labels))
        assert (d == 1).all()
        return jnp.zeros_like(x)

    x0, x1 = PROBLEM.pairs(20_000)
    loss, _ = reflow.Reflow().loss(PROBLEM.inputs(x1, apply=network, x0=x0))
    t = seen["t"]
    assert {*(128 * t)} == {*range(128)}
    assert (seen["labels"] == NULL_LABEL).mean() == pytest.approx(0.1, abs=0.01)
    wide = t[:, None, None, None]
    assert_equal(seen["x"], (1 - (1 - 1e-5) * wide) * x0 + wide * x1)
    assert_equal(loss, jnp.mean((x1 - (1 - 1e-5) * x0) ** 2))


def test_consistency_training() -> None:
    """(f(x_{t+h}, t+h) - x_t) / (1 - t) with f the flow to t = 1; x_1 itself where t + h = 1."""
    p = Points()
    objective = consistency_training.ConsistencyTraining(sigma_min=0.0)

    def network(
        params: Any, x: jax.Array, t: jax.Array, d: jax.Array, labels: jax.Array
    ) -> jax.Array:
        assert (d == 1).all()
        return PROBLEM.mean_velocity(x, t, 1 - t)

    t_next = jnp.where(jnp.arange(ROWS) % 4 == 0, 1.0, p.t + p.d)
    inputs = PROBLEM.inputs(p.x1, apply=network)
    ours = objective.targets(inputs, p.x0, p.t, t_next)
    x_next = base.path(p.x0, p.x1, t_next, sigma_min=0.0)
    x1_hat = PROBLEM.flow(x_next, t_next, jnp.ones(ROWS))
    assert_equal(ours, (x1_hat - p.xt) / (1 - p.t)[:, None, None, None])
    last = t_next == 1
    exact = (p.x1 - p.xt) / (1 - p.t)[:, None, None, None]
    assert_equal(ours[last], exact[last])


def test_consistency_training_stages() -> None:
    """1, 2, ..., 64 bins, each for a seventh of the training."""
    objective = consistency_training.ConsistencyTraining()
    bins = [float(objective.bins(jnp.asarray(step), 7000)) for step in range(0, 7000, 1000)]
    assert bins == [1, 2, 4, 8, 16, 32, 64]
    assert float(objective.bins(jnp.asarray(999), 7000)) == 1
    assert float(objective.bins(jnp.asarray(6999), 7000)) == 64


def test_live_reflow() -> None:
    """Eight Euler steps of the field at d = 1/M, guided: an affine map in closed form."""
    p = Points()
    guidance = 1.5

    def network(
        params: Any, x: jax.Array, t: jax.Array, d: jax.Array, labels: jax.Array
    ) -> jax.Array:
        shift = jnp.where(d == 1 / 128, 2.0 * (labels == NULL_LABEL), jnp.nan)
        return PROBLEM.velocity(x, t) + base.along_rows(shift, x)

    objective = live_reflow.LiveReflow(guidance=guidance)
    ours = objective.generate(PROBLEM.inputs(p.x1, apply=network), p.x0, p.labels)
    exact = np.asarray(p.x0, np.float64)
    for i in range(8):
        t = i / 8
        slope = (t * 0.4**2 - (1 - t)) / ((1 - t) ** 2 + (t * 0.4) ** 2)
        v = 0.7 + slope * (exact - t * 0.7)
        exact = exact + (v + (1 - guidance) * 2.0) / 8
    assert_equal(ours, exact)


def numpy_curve(curve: str, t: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """(a, b) and its first and second derivatives, differentiated by hand."""
    if curve == "smoothstep":
        a, da, dda = 3 * t**2 - 2 * t**3, 6 * t - 6 * t**2, 6 - 12 * t
        return [(a, 1 - a), (da, -da), (dda, -dda)]
    s = 1 - t
    a = np.exp(-19.9 * s**2 / 4 - 0.1 * s / 2)
    rate = 19.9 * s / 2 + 0.05
    da, dda = a * rate, a * (rate**2 - 19.9 / 2)
    b = np.sqrt(1 - a**2)
    db = -a * da / b
    return [(a, b), (da, db), (dda, -(da**2 + a * dda + db**2) / b)]


@pytest.mark.parametrize("curve", ["smoothstep", "variance_preserving"])
def test_high_order_loss_row_by_row(curve: str) -> None:
    """Every row's two errors against the equations in numpy, from the rows that the network saw.

    The network is a function of everything it is told, so that each row must have its own x_t, t,
    d and label, and bootstrap rows the two half steps of the second order.
    """
    seen: list[tuple[np.ndarray, ...]] = []

    def field(x: Any, t: Any, d: Any, labels: Any, xp: Any = np) -> Any:
        t, d, y = (xp.reshape(v, (-1, 1, 1, 1)) for v in (t, d, labels))
        u1 = xp.sin(2 * x + 3 * t) + d * x + 0.3 * y
        return xp.concatenate([u1, xp.cos(x - t) * (1 + d) - 0.2 * y], axis=-1)

    def network(
        params: Any, x: jax.Array, t: jax.Array, d: jax.Array, labels: jax.Array
    ) -> jax.Array:
        seen.append(tuple(np.asarray(v) for v in (x, t, d, labels)))
        return field(x, t, d, labels, jnp)

    _, x1 = PROBLEM.pairs(ROWS)
    objective = high_order.HighOrder(
        curve=curve, acceleration="path", clip=0.0, acceleration_weight=0.7
    )
    inputs = PROBLEM.inputs(x1, apply=network, step=jnp.asarray(3))
    loss, metrics = objective.loss(inputs)

    x, t, d, labels = seen[-1]  # The last call is that of the trained weights on all rows.
    boot = np.arange(ROWS) % 4 == 0
    assert (d[~boot] == 1 / 128).all()
    assert set(d[boot]) == {2.0**-level for level in range(7)}
    assert (t % d == 0).all() and (t + d <= 1).all()
    assert (labels[boot] == 0).all()

    (a, b), (da, db), (dda, ddb) = (
        [c[:, None, None, None] for c in pair] for pair in numpy_curve(curve, t)
    )
    data = np.asarray(x1)
    noise = (x - a * data) / b
    assert abs(noise.mean()) < 0.3 and abs(noise.std() - 1) < 0.2
    target = np.concatenate([da * data + db * noise, dda * data + ddb * noise], axis=-1)
    half = d[boot][:, None, None, None] / 2
    first = field(x[boot], t[boot], d[boot] / 2, labels[boot])
    moved = x[boot] + half * first[..., :2] + half**2 / 2 * first[..., 2:]
    second = field(moved, t[boot] + d[boot] / 2, d[boot] / 2, labels[boot])
    both = first + second
    target[boot] = np.concatenate([both[..., :2] / 2, both[..., 2:] / 4], axis=-1)
    squares = (field(x, t, d, labels) - target) ** 2
    of_u1, of_u2 = squares[..., :2].mean((1, 2, 3)), squares[..., 2:].mean((1, 2, 3))

    np.testing.assert_allclose(metrics["loss_velocity"], of_u1[~boot], rtol=1e-8)
    np.testing.assert_allclose(metrics["loss_acceleration"], of_u2[~boot], rtol=1e-8)
    np.testing.assert_allclose(metrics["loss_bootstrap"], of_u1[boot], rtol=1e-8)
    np.testing.assert_allclose(metrics["loss_bootstrap_acceleration"], of_u2[boot], rtol=1e-8)
    _, speeds, accelerations = (
        np.square(pair) for pair in numpy_curve(curve, np.arange(128) / 128)
    )
    c = 0.7 * speeds.mean() / accelerations.mean()
    np.testing.assert_allclose(loss, (of_u1 + c * of_u2).mean(), rtol=1e-8)


def test_high_order_acceleration_is_the_flows() -> None:
    """With u1 exact it is d^2 x/dt^2 of the flow x_t = t m + (c_t / c_0) x_0, by its second
    difference; steps by it are of second order where Euler's are of first."""
    p = Points()

    def network(
        params: Any, x: jax.Array, t: jax.Array, d: jax.Array, labels: jax.Array
    ) -> jax.Array:
        return jnp.concatenate([PROBLEM.velocity(x, t), jnp.full_like(x, jnp.nan)], axis=-1)

    objective = high_order.HighOrder()
    inputs = PROBLEM.inputs(p.x1, apply=network)
    ours = objective.flow_accelerations(inputs, p.xt, p.t, p.labels)
    h = 1e-4
    before, after = (PROBLEM.flow(p.xt, p.t, p.t + step) for step in (-h, h))
    np.testing.assert_allclose(ours, (before - 2 * p.xt + after) / h**2, atol=1e-5)

    def exact(x: jax.Array, t: jax.Array, d: jax.Array, labels: jax.Array) -> jax.Array:
        acceleration = objective.flow_accelerations(inputs, x, t, labels)
        return jnp.concatenate([PROBLEM.velocity(x, t), acceleration], axis=-1)

    end = PROBLEM.flow(p.x0, jnp.zeros(ROWS), jnp.ones(ROWS))
    errors = []
    for num_steps in (16, 32):
        second = samplers.second_order(exact, p.x0, p.labels, num_steps, 1 / 128)
        first = samplers.euler(
            lambda x, t, d, labels: PROBLEM.velocity(x, t), p.x0, p.labels, num_steps, 1 / 128
        )
        errors.append([float(jnp.sqrt(jnp.mean((x - end) ** 2))) for x in (second, first)])
    falls = np.divide(*errors)
    assert 3.6 < falls[0] < 4.6 and 1.8 < falls[1] < 2.3


def test_high_order_steps_add_up() -> None:
    """One step of 2d with the targets moves as far as the two steps of d that made them."""
    p = Points()

    def network(
        params: Any, x: jax.Array, t: jax.Array, d: jax.Array, labels: jax.Array
    ) -> jax.Array:
        t = base.along_rows(t, x)
        return jnp.concatenate([jnp.sin(2 * x + t), 5 * jnp.cos(x - t)], axis=-1)

    inputs = PROBLEM.inputs(p.x1, apply=network)
    targets = high_order.HighOrder(clip=0.0).bootstrap_targets(inputs, p.xt, p.t, p.d, p.labels)
    x, half = p.xt, base.along_rows(p.d / 2, p.xt)
    for t in (p.t, p.t + p.d / 2):
        u1, u2 = jnp.split(network(None, x, t, p.d / 2, p.labels), 2, axis=-1)
        x = x + half * u1 + half**2 * u2 / 2
    d, (u1, u2) = 2 * half, jnp.split(targets, 2, axis=-1)
    assert_equal(p.xt + d * u1 + d**2 * u2 / 2, x)


def test_high_order_refuses_to_leave_the_acceleration_untrained() -> None:
    with pytest.raises(ValueError, match="acceleration_weight"):
        high_order.HighOrder(acceleration_weight=0.0)
    with pytest.raises(ValueError, match="smoothstep, variance_preserving"):
        high_order.HighOrder(curve="straight")


def test_diffusion_schedule() -> None:
    """a_k = prod (1 - beta), beta linear from 1e-4 to 0.02 over 1000 steps; 1 at t = 1."""
    objective = diffusion.Diffusion()
    betas = np.linspace(1e-4, 0.02, 1000)
    expected = {1.0: 1.0, 0.999: 1 - 1e-4, 0.0: np.prod(1 - betas), 0.5: np.prod(1 - betas[:500])}
    for t, value in expected.items():
        np.testing.assert_allclose(objective.alpha_bar(t), value, rtol=1e-12)


def exact_noise(params: Any, x: jax.Array, t: jax.Array, d: jax.Array, labels: Any) -> jax.Array:
    """E[x_0 | x_t] on diffusion's path: sqrt(1 - a) (x - sqrt(a) m) / (a s^2 + 1 - a)."""
    a = base.along_rows(diffusion.Diffusion().alpha_bar(t), x)
    return jnp.sqrt(1 - a) * (x - jnp.sqrt(a) * 0.7) / (a * 0.4**2 + 1 - a)


def test_diffusion_loss() -> None:
    """At the exact prediction the loss is the noise's variance given x_t, a s^2 / (a s^2 + 1 - a).

    Averaged over the rows' times; any other prediction has a larger loss.
    """
    _, x1 = PROBLEM.pairs(200_000)
    objective = diffusion.Diffusion()
    loss, _ = objective.loss(PROBLEM.inputs(x1, apply=exact_noise))
    a = objective.alpha_bar(jnp.arange(1000) / 1000)
    assert float(loss) == pytest.approx(float(jnp.mean(a * 0.16 / (a * 0.16 + 1 - a))), abs=2e-3)


@pytest.mark.parametrize("num_steps", [32, 50, 128])
def test_diffusion_is_told_the_step_of_its_noise(num_steps: int) -> None:
    """At t = i/n the network is told 1 - k/1000 of the k whose alpha-bar the sampler takes."""
    objective, told = diffusion.Diffusion(), []

    def noise(x: jax.Array, t: jax.Array, d: jax.Array, labels: jax.Array) -> jax.Array:
        jax.debug.callback(lambda t: told.append(float(t)), t[0])
        return x

    keys = jax.random.split(jax.random.key(0), 1)
    objective.sample(noise, jnp.zeros((1, 1, 1, 1)), jnp.zeros(1, int), num_steps, keys)
    jax.effects_barrier()
    table = np.concatenate([[1.0], np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))])
    assert len(told) == num_steps
    for index, t in enumerate(sorted(told)):
        k = (1 - t) * 1000
        assert k == pytest.approx(round(k), abs=1e-6)
        np.testing.assert_allclose(objective.alpha_bar(index / num_steps), table[round(k)])


def test_diffusion_sampler_converges_to_the_flow() -> None:
    """DDIM on the exact prediction arrives where the probability flow does, x_1 = m + s z.

    z is the start's number of standard deviations. The error falls with the number of steps.
    """
    p = Points()
    objective = diffusion.Diffusion()
    a = objective.alpha_bar(0.0)
    z = (p.x0 - jnp.sqrt(a) * 0.7) / jnp.sqrt(a * 0.16 + 1 - a)
    errors = {}
    for num_steps in (50, 100, 500, 1000):
        x1 = objective.sample(
            lambda x, t, d, labels: exact_noise(None, x, t, d, labels),
            p.x0,
            p.labels,
            num_steps,
            jax.random.split(jax.random.key(0), ROWS),
        )
        errors[num_steps] = float(jnp.max(jnp.abs(x1 - (0.7 + 0.4 * z))))
    assert errors[1000] < errors[500] < errors[100] < errors[50]
    assert errors[1000] < 0.01


def test_every_objective_is_here_or_with_the_distillations() -> None:
    """A method's target must be checked before it is offered."""
    names = {*globals(), *vars(test_distillation_targets)}
    checked = {name.removeprefix("test_") for name in names if name.startswith("test_")}
    covered = {name for name in OBJECTIVES if any(test.startswith(name) for test in checked)}
    assert set(OBJECTIVES) - covered <= {"flow_matching"}

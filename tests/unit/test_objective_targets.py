"""The targets of every method on the Gaussian problem, against its closed forms in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shortcut_tpu.objectives import (
    OBJECTIVES,
    base,
    consistency_training,
    diffusion,
    high_order,
    improved_shortcut,
    live_reflow,
    reflow,
    shortcut,
)
from shortcut_tpu.sampling import samplers
from tests.unit import test_distillation_targets, test_mean_velocity_targets
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


def test_every_objective_is_in_one_of_these_files() -> None:
    """A method's target must be checked before it is offered; fd_loss is in test_fd_loss."""
    names = {*globals(), *vars(test_distillation_targets), *vars(test_mean_velocity_targets)}
    checked = {name.removeprefix("test_") for name in names if name.startswith("test_")}
    covered = {name for name in OBJECTIVES if any(test.startswith(name) for test in checked)}
    assert set(OBJECTIVES) - covered <= {"flow_matching", "fd_loss"}

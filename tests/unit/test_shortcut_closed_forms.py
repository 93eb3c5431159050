"""Flow matching and shortcut against closed forms. Parity with the official code is elsewhere."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shortcut_tpu.objectives import Inputs, make_objective
from shortcut_tpu.objectives.flow_matching import FlowMatching
from shortcut_tpu.objectives.high_order import HighOrder
from shortcut_tpu.objectives.improved_shortcut import ImprovedShortcut
from shortcut_tpu.objectives.shortcut import Shortcut

NULL = 10
RATE = 0.7


def exact_shortcut(params, x, t, d, labels):
    """The mean velocity of x' = a x over a step d: x (e^(a d) - 1) / d."""
    d = d[:, None, None, None]
    return params * x * jnp.expm1(RATE * d) / d


class Spy:
    """A network that remembers what it was asked."""

    def __init__(self, answer=lambda params, x, *rest: params * x):
        self.calls = []
        self.answer = answer

    def __call__(self, params, x, t, d, labels):
        self.calls.append((params, x, t, d, labels))
        return self.answer(params, x, t, d, labels)


def make_inputs(apply, rows=64, emas=None, step=0, seed=0, row_shards=1):
    key = jax.random.key(seed)
    return Inputs(
        apply=apply,
        params=jnp.float32(1.0),
        emas=emas or {"target": jnp.float32(1.0)},
        x1=jax.random.normal(jax.random.fold_in(key, 1), (rows, 2, 2, 1)),
        labels=jax.random.randint(jax.random.fold_in(key, 2), (rows,), 0, NULL),
        null_label=NULL,
        key=jax.random.fold_in(key, 3),
        step=jnp.int32(step),
        num_steps=100,
        row_shards=row_shards,
    )


def told(objective, num_steps):
    """The step size that the network is told when samples are drawn in so many steps."""
    seen = []

    def velocity(x, t, d, labels):
        jax.debug.callback(seen.append, d)
        return x

    keys = jax.random.split(jax.random.key(0), 1)
    x1 = objective.sample(velocity, jnp.ones((1, 2, 2, 1)), jnp.zeros(1, int), num_steps, keys)
    jax.block_until_ready(x1)
    jax.effects_barrier()
    assert len(seen) == num_steps
    (d,) = {float(d[0]) for d in seen}
    return d


# ------------------------------------------------------------------- flow matching


def test_flow_matching_regresses_on_the_straight_path():
    """x_t = (1 - (1 - s) t) x_0 + t x_1 and the target is dx_t/dt, so v t' recovers x_0 and x_1."""
    spy = Spy(lambda params, x, *rest: jnp.zeros_like(x))
    inputs = make_inputs(spy, rows=256)
    loss, metrics = FlowMatching(label_dropout=0.25).loss(inputs)
    (_, xt, t, d, labels) = spy.calls[0]
    # A zero network's loss is the mean square of the target; with x_t and x_1 that gives x_0.
    t4 = t[:, None, None, None]
    x0 = (xt - t4 * inputs.x1) / (1 - (1 - 1e-5) * t4)
    target = inputs.x1 - (1 - 1e-5) * x0
    np.testing.assert_allclose(metrics["loss_flow"], jnp.square(target).mean((1, 2, 3)), rtol=2e-2)
    np.testing.assert_allclose(loss, metrics["loss_flow"].mean(), rtol=1e-6)
    assert abs(float(x0.mean())) < 0.15
    assert float(x0.std()) == pytest.approx(1, abs=0.1)
    np.testing.assert_array_equal(t * 128, jnp.round(t * 128))
    assert 0 <= t.min() < 0.05
    assert 0.95 < t.max() < 1
    assert (d == 1).all()
    kept = labels == inputs.labels
    assert (kept | (labels == NULL)).all()
    assert float(1 - kept.mean()) == pytest.approx(0.25, abs=0.1)


def test_flow_matching_never_tells_the_step_size():
    assert {told(FlowMatching(), n) for n in (1, 2, 128)} == {1.0}


# ------------------------------------------------------------------- shortcut: which rows, levels


@pytest.mark.parametrize("rows", [7, 8, 32, 64, 100])
def test_levels_are_dealt_in_equal_parts(rows):
    """Official code: rows // 7 of each of the levels 6 .. 0, and the remainder at level 0."""
    counts = collections.Counter(np.asarray(Shortcut(level_remainder="coarsest").levels(rows, 0)))
    share, left = divmod(rows, 7)
    assert counts == {0.0: share + left, **{float(level): share for level in range(1, 7)}}


@pytest.mark.parametrize("rows", [1, 3, 8, 32])
def test_rotation_trains_every_level_equally(rows):
    """Over seven steps every level gets as many rows, even with fewer rows than levels."""
    objective = Shortcut()
    seen = collections.Counter()
    for step in range(7):
        seen.update(np.asarray(objective.levels(rows, step)).tolist())
    assert set(seen) == {float(level) for level in range(7)}
    assert set(seen.values()) == {rows}


def test_each_row_has_a_time_on_its_own_grid_and_keeps_its_place():
    """Bootstrap t is in {0 .. 2^level - 1} / 2^level, flow t in {0 .. 127} / 128."""
    spy = Spy()
    inputs = make_inputs(spy, rows=256, step=3)
    objective = Shortcut(bootstrap_share=0.25, label_dropout=0.5)
    _, metrics = objective.loss(inputs)
    _, xt, t, d, labels = spy.calls[-1]
    is_bootstrap = np.arange(256) % 4 == 0
    assert (d[~is_bootstrap] == 1 / 128).all()
    np.testing.assert_array_equal(
        d[is_bootstrap], 2.0 ** -np.asarray(objective.levels(64, inputs.step))
    )
    np.testing.assert_array_equal(t / jnp.minimum(d, 1), jnp.round(t / d))
    assert ((t >= 0) & (t + d <= 1)).all()
    # Labels are dropped on flow rows alone.
    np.testing.assert_array_equal(labels[is_bootstrap], inputs.labels[is_bootstrap])
    assert 0.3 < float((labels[~is_bootstrap] == NULL).mean()) < 0.7
    # x_t is a mix of this very row's image: the residue is independent noise of unit variance.
    t4 = t[:, None, None, None]
    x0 = (xt - t4 * inputs.x1) / (1 - (1 - 1e-5) * t4)
    assert float(x0.std()) == pytest.approx(1, abs=0.1)
    assert metrics["loss_flow"].shape == (64, 3)
    assert metrics["loss_bootstrap"].shape == (64,)


@pytest.mark.parametrize("objective", [Shortcut(), ImprovedShortcut(), HighOrder()])
def test_level_metrics_split_the_bootstrap_rows(objective):
    """Each row counts at the level l of the step size 2^-l that the network was told last."""
    seen = []

    def network(params, x, t, d, labels, **conditions):
        seen.append(d)
        return jnp.repeat(params * x, objective.heads, axis=-1)

    _, metrics = objective.loss(make_inputs(network, rows=256, step=3))
    by_level = np.stack([metrics[f"loss_level_{level}"] for level in range(7)])
    assert (np.isfinite(by_level).sum(0) == 1).all()
    np.testing.assert_array_equal(np.nansum(by_level, 0), metrics["loss_bootstrap"])
    told_last = seen[-1].reshape(-1, round(1 / objective.bootstrap_share))[:, 0]
    np.testing.assert_array_equal(2.0 ** -np.isfinite(by_level).argmax(0), told_last)


# ------------------------------------------------------------------- shortcut: targets


@pytest.mark.parametrize("level", range(7))
def test_target_of_the_exact_network_is_the_exact_network(level):
    """On x' = a x two exact half steps compose to the exact step: s(2d) = (s(d) + s'(d)) / 2."""
    objective = Shortcut(clip=0.0)
    inputs = make_inputs(exact_shortcut)
    levels = jnp.full(64, float(level))
    t = jnp.zeros(64)
    target = objective.targets(inputs, inputs.x1, t, levels, inputs.labels)
    expected = exact_shortcut(1.0, inputs.x1, t, 2.0**-levels, inputs.labels)
    np.testing.assert_allclose(target, expected, rtol=1e-5)


def test_half_steps_are_asked_at_t_and_t_plus_d_of_the_target_average():
    spy = Spy(lambda params, x, *rest: jnp.full_like(x, params))
    inputs = make_inputs(spy, rows=4, emas={"target": jnp.float32(0.5), "evaluation": 9.0})
    levels, t = jnp.array([0.0, 1.0, 2.0, 3.0]), jnp.array([0.0, 0.5, 0.25, 0.375])
    target = Shortcut().targets(inputs, inputs.x1, t, levels, inputs.labels)
    half = 2.0**-levels / 2
    (ema1, x1, t1, d1, _), (ema2, x2, t2, d2, _) = spy.calls
    assert ema1 == ema2 == 0.5
    np.testing.assert_array_equal(x1, inputs.x1)
    np.testing.assert_allclose(x2, inputs.x1 + 0.5 * half[:, None, None, None], rtol=1e-6)
    np.testing.assert_array_equal(t1, t)
    np.testing.assert_array_equal(t2, t + half)
    np.testing.assert_array_equal(d1, half)
    np.testing.assert_array_equal(d2, half)
    np.testing.assert_allclose(target, 0.5, rtol=1e-6)


def test_targets_are_clipped_and_so_is_the_half_step():
    spy = Spy(lambda params, x, *rest: jnp.full_like(x, 100.0))
    inputs = make_inputs(spy, rows=4)
    target = Shortcut(clip=4.0).targets(
        inputs, inputs.x1, jnp.zeros(4), jnp.zeros(4), inputs.labels
    )
    assert (spy.calls[1][1] == 4).all()
    assert (target == 4).all()


def test_no_gradient_flows_through_the_target():
    """d loss / d params is that of a regression on fixed targets, also with the online network."""

    def loss(params, objective):
        inputs = make_inputs(exact_shortcut)
        inputs = Inputs(**{**vars(inputs), "params": params, "emas": {"target": params}})
        return objective.loss(inputs)[0]

    for target_ema in ("target", ""):
        objective = Shortcut(target_ema=target_ema, clip=0.0)
        gradient = jax.grad(functools.partial(loss, objective=objective))(jnp.float32(1.3))
        frozen = Shortcut(target_ema="target", clip=0.0)

        def regression(params, frozen=frozen):
            inputs = make_inputs(exact_shortcut, emas={"target": jnp.float32(1.3)})
            return frozen.loss(Inputs(**{**vars(inputs), "params": params}))[0]

        np.testing.assert_allclose(gradient, jax.grad(regression)(jnp.float32(1.3)), rtol=1e-5)


def test_guidance_enters_once_at_the_finest_bootstrap_level():
    """v_null + w (v - v_null) on rows of level 6 only; with v = 2 and v_null = 1, w = 1.5: 2.5."""

    def network(params, x, t, d, labels):
        return jnp.where(labels == NULL, 1.0, 2.0)[:, None, None, None] * jnp.ones_like(x)

    objective = Shortcut(guidance=1.5)
    inputs = make_inputs(network, rows=32)
    levels = objective.levels(32, 0)
    target = objective.targets(inputs, inputs.x1, jnp.zeros(32), levels, inputs.labels)
    np.testing.assert_allclose(target[:, 0, 0, 0], jnp.where(levels == 6, 2.5, 2.0))


@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_the_number_of_devices_decides_nothing(guidance):
    """row_shards may move work and not results."""

    def network(params, x, t, d, labels):
        return x * jnp.where(labels == NULL, 0.5, 1.0)[:, None, None, None] * params

    objective = Shortcut(guidance=guidance)
    losses = [
        float(objective.loss(make_inputs(network, rows=256, row_shards=shards))[0])
        for shards in (1, 2, 8, 64)
    ]
    assert len(set(losses)) == 1


def test_unlabelled_copies_cost_only_the_guided_rows():
    """With 64 bootstrap rows on few devices, 16 rows are evaluated twice to guide 9 or 10."""
    spy = Spy()
    Shortcut(guidance=1.5).loss(make_inputs(spy, rows=256))
    assert [len(call[1]) for call in spy.calls] == [80, 80, 256]


# ------------------------------------------------------------------- shortcut: sampling, registry


def test_sampler_is_told_the_finer_of_two_trained_step_sizes():
    found = {n: told(Shortcut(), n) for n in (1, 2, 3, 4, 5, 128, 500)}
    assert found == {1: 1, 2: 1 / 2, 3: 1 / 4, 4: 1 / 4, 5: 1 / 8, 128: 1 / 128, 500: 1 / 128}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bootstrap_share": 0.3}, "bootstrap_share=0.3: it may be a unit fraction"),
        ({"finest_steps": 100}, "finest_steps=100: it may be a power of two"),
        ({"level_remainder": "none"}, "level_remainder='none'"),
    ],
)
def test_impossible_hyperparameters_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_objective({"name": "shortcut", "shortcut": options})


def test_unknown_objective_names_the_known():
    with pytest.raises(ValueError, match="'short' is none of flow_matching, diffusion, shortcut, "):
        make_objective({"name": "short"})

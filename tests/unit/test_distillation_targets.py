"""The targets of the methods with a teacher, against closed forms and numpy in float64."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from shortcut_tpu.models import koopman as networks
from shortcut_tpu.objectives import (
    base,
    consistency_distillation,
    flow_anchored,
    get,
    koopman,
    progressive_distillation,
    reflow,
)
from shortcut_tpu.training.latents import Scaling
from shortcut_tpu.training.train_state import TrainState
from shortcut_tpu.training.train_step import make_train_step
from tests.unit.points import PROBLEM, ROWS, Points, assert_equal

pytestmark = pytest.mark.usefixtures("float64")


TEACHER_AND_STUDENT = {
    "teacher": {"is_teacher": np.array(True)},
    "target": {"is_teacher": np.array(False)},
}


def teacher_and_student(teacher: Any, student: Any) -> Any:
    """A network that is one function with the teacher's parameters and another with others."""

    def network(
        params: Any, x: jax.Array, t: jax.Array, d: jax.Array, labels: jax.Array
    ) -> jax.Array:
        assert (d == 1).all()
        return (teacher if params["is_teacher"] else student)(x, t, labels)

    return network


def test_flow_anchored() -> None:
    """A network that steps to the data exactly is its own target, at any relaxation and clip."""
    p = Points()
    objective = flow_anchored.FlowAnchored(relaxation=0.5, clip=1.0)
    step = PROBLEM.mean_velocity(p.xt, p.t, 1 - p.t)
    assert_equal(objective.targets(p.inputs, step, p.xt, p.t, p.v, p.labels), step)


def test_flow_anchored_loss() -> None:
    """Every term in numpy, for a network x t + d + label of which D is v t + x - 1; the teacher is
    another and guided from t = .125 on, by its own label where the student's is dropped."""

    def network(
        params: Any, x: jax.Array, t: jax.Array, d: jax.Array, labels: jax.Array
    ) -> jax.Array:
        t, d, y = (base.along_rows(a, x) for a in (t, d, labels))
        return x - 2 * y if params.get("is_teacher") else x * t + d + y

    _, x1 = PROBLEM.pairs(64, values=3)
    labels = jnp.arange(64) % 2
    objective = flow_anchored.FlowAnchored(guidance=1.75, label_dropout=0.25)
    inputs = PROBLEM.inputs(
        x1, apply=network, emas=TEACHER_AND_STUDENT, labels=labels, null_label=7
    )
    loss, metrics = objective.loss(inputs)

    noise_key, time_key, label_key = jax.random.split(inputs.key, 3)
    x0, t = jax.random.normal(noise_key, x1.shape), objective.draw_times(time_key, 64)
    told = base.drop_labels(label_key, labels, 0.25, 7)
    t, y, told = (np.asarray(a)[:, None, None, None] for a in (t, labels, told))
    assert 0 < (told == 7).sum() < 32 and 0 < (t < 0.125).sum() < 64
    x = (1 - t) * x0 + t * x1
    v = np.where(t >= 0.125, x - 2 * 7 + 1.75 * 2 * (7 - y), x - 2 * y)
    step, flow = x * t + (1 - t) + told, x * t + told
    wrong = np.clip(step - v - (1 - t) * (v * t + x - 1), -1, 1)
    error = np.mean(((1 - np.sqrt(t)) * wrong) ** 2, axis=(1, 2, 3))
    anchor = np.mean((flow - v) ** 2, axis=(1, 2, 3))
    norms = np.linalg.norm(flow, axis=-1) * np.linalg.norm(v, axis=-1)
    cosine = np.mean(np.sum(flow * v, axis=-1) / norms, axis=(1, 2))
    weighted = np.cos(np.pi / 2 * t[:, 0, 0, 0]) * error / np.sqrt(error + 1e-3)
    assert_equal(loss, np.mean(weighted + anchor + 1 - cosine))
    assert_equal(metrics["loss_consistency"], error)
    assert_equal(metrics["loss_anchor"], anchor)


def test_flow_anchored_times() -> None:
    """(2/pi) arctan(s) of the noise is log-normal: log tan(pi (1 - t)/2) ~ N(-.8, 1.6^2)."""
    t = flow_anchored.FlowAnchored().draw_times(jax.random.key(0), 100_000)
    z = np.log(np.tan(np.pi / 2 * (1 - np.asarray(t))))
    assert np.mean(z) == pytest.approx(-0.8, abs=0.02)
    assert np.std(z) == pytest.approx(1.6, abs=0.02)


@pytest.mark.parametrize("stage", [0, 3, 6])
def test_progressive_distillation(stage: int) -> None:
    """A teacher with the exact u(x, t, d/2) gives the exact u(x, t, d), d = 2^(stage + 1) / M."""
    p = Points()
    d = 2.0 ** (stage + 1) / 128
    network = teacher_and_student(
        lambda x, t, labels: PROBLEM.mean_velocity(x, t, jnp.full_like(t, d / 2)), None
    )
    inputs = PROBLEM.inputs(p.x1, apply=network, emas=TEACHER_AND_STUDENT)
    objective = progressive_distillation.ProgressiveDistillation(clip=0.0)
    t = jnp.floor(p.t / d) * d
    targets = objective.targets(inputs, p.xt, t, p.labels, jnp.asarray(stage))
    assert_equal(targets, PROBLEM.mean_velocity(p.xt, t, jnp.full_like(t, d)))


def test_progressive_distillation_guides_in_the_first_stage() -> None:
    """v_null + w (v - v_null) of the teacher at stage 0, v at all others."""
    p = Points()
    network = teacher_and_student(
        lambda x, t, labels: jnp.full_like(x, 3.0) - 2.0 * (labels == 0)[:, None, None, None], None
    )
    inputs = PROBLEM.inputs(p.x1, apply=network, emas=TEACHER_AND_STUDENT)
    objective = progressive_distillation.ProgressiveDistillation(clip=0.0, guidance=1.5)
    for stage, value in ((0, 3 + 1.5 * (1 - 3)), (1, 1.0), (6, 1.0)):
        targets = objective.targets(inputs, p.xt, p.t, p.labels, jnp.asarray(stage))
        assert_equal(targets, jnp.full_like(p.xt, value))


def test_progressive_distillation_renews_its_teacher() -> None:
    """The student's average takes the teacher's place at the end of each stage, and only then."""
    objective = progressive_distillation.ProgressiveDistillation(target_ema="target")
    emas = {"teacher": {"w": jnp.zeros(2)}, "target": {"w": jnp.ones(2)}, "evaluation": {}}
    renewals = [
        step
        for step in range(700)
        if objective.renewed(emas, jnp.asarray(step), 700)["teacher"]["w"].all()
    ]
    assert renewals == [99, 199, 299, 399, 499, 599]


def test_consistency_distillation() -> None:
    """A teacher with the exact u(x, t, 1/M) and a student with the exact u(x, t, 1 - t) agree."""
    p = Points()
    network = teacher_and_student(
        lambda x, t, labels: PROBLEM.mean_velocity(x, t, jnp.full_like(t, 1 / 128)),
        lambda x, t, labels: PROBLEM.mean_velocity(x, t, 1 - t),
    )
    inputs = PROBLEM.inputs(p.x1, apply=network, emas=TEACHER_AND_STUDENT)
    objective = consistency_distillation.ConsistencyDistillation(clip=0.0)
    t = jnp.floor(p.t * 128) / 128
    targets = objective.targets(inputs, p.xt, t, p.labels)
    assert_equal(targets, PROBLEM.mean_velocity(p.xt, t, 1 - t))


def test_reflow() -> None:
    """On the flow's own pairs the field m + (s - 1) x_0, x_0 from x_t, has no loss: d = 1, all t.

    Another field has the mean square of what it is off by, row by row.
    """
    x0, _ = PROBLEM.pairs(ROWS)
    x1 = PROBLEM.flow(x0, jnp.zeros(ROWS), jnp.ones(ROWS))
    seen: list[np.ndarray] = []

    def network(off: float) -> Any:
        def field(
            params: Any, x: jax.Array, t: jax.Array, d: jax.Array, labels: jax.Array
        ) -> jax.Array:
            assert (d == 1).all()
            seen.append(np.asarray(t))
            t = base.along_rows(t, x)
            noise = (x - t * 0.7) / (1 - t + 0.4 * t)
            return 0.7 + (0.4 - 1) * noise + off * t

        return field

    for off in (0.0, 2.0):
        inputs = PROBLEM.inputs(x1, apply=network(off), x0=x0)
        loss, metrics = reflow.Reflow(label_dropout=0.0, sigma_min=0.0).loss(inputs)
        assert_equal(metrics["loss_reflow"], (off * seen[-1]) ** 2)
        assert_equal(loss, np.mean((off * seen[-1]) ** 2))
    assert (seen[0] >= 0).all() and (seen[0] < 1).all() and np.std(seen[0]) > 0.2


def test_get() -> None:
    """sum_k g^(n - k) mean |y^k - z_1| in numpy for n = 3; the sample is y^n."""
    x0, x1 = PROBLEM.pairs(ROWS)
    factors = (0.5, -1.0, 2.0)

    def network(
        params: Any, x: jax.Array, t: jax.Array, d: jax.Array, labels: jax.Array
    ) -> jax.Array:
        return jnp.concatenate([c * x for c in factors], axis=-1)

    objective = get.GenerativeEquilibrium(iterate_decay=0.5)
    loss, metrics = objective.loss(PROBLEM.inputs(x1, apply=network, x0=x0))
    noise, data = np.asarray(x0), np.asarray(x1)
    errors = [np.abs(c * noise - data).mean((1, 2, 3)) for c in factors]
    rows = errors[0] / 4 + errors[1] / 2 + errors[2]
    assert_equal(metrics["loss_iterates"], rows)
    assert_equal(metrics["loss_sample"], errors[2])
    assert_equal(loss, rows.mean())
    sample = objective.sample(
        lambda *a: network(None, *a),
        x0,
        jnp.zeros(ROWS, int),
        1,
        jax.random.split(jax.random.key(0), ROWS),
    )
    assert_equal(sample, 2 * x0)
    assert objective.step_counts((1, 4, 128)) == (1,)
    with pytest.raises(ValueError, match="iterate_decay"):
        get.GenerativeEquilibrium(iterate_decay=0.0)


def test_koopman() -> None:
    """a |z_0 - z_p|^2 + b |D(z_0) - z_1|^2 + c |D(z_p) - z_1|^2 in numpy, each a mean.

    For linear parts: D(z) = 2 z, E_0(x) = x / 2, K E_T(x) + c_y = 0.3 x + y.
    """
    x0, x1 = PROBLEM.pairs(ROWS)
    labels = jnp.arange(ROWS) % 3

    class Linear:
        def parts(
            self, params: Any, x0: Any, x1: Any, labels: Any, key: Any, noise: float, dropout: float
        ) -> networks.Parts:
            assert (noise, dropout) == (0.4, 0.1)
            code, pushed = x1 / 2, 0.3 * x0 + base.along_rows(labels, x0)
            return networks.Parts(code, pushed, 2 * code, 2 * pushed)

    objective = koopman.KoopmanDistillation(
        latent_weight=0.5, reconstruction_weight=3.0, push_weight=2.0
    )
    inputs = PROBLEM.inputs(x1, x0=x0, labels=labels, model=Linear())
    loss, metrics = objective.loss(inputs)
    noise, data = np.asarray(x0), np.asarray(x1)
    pushed = 0.3 * noise + np.asarray(labels)[:, None, None, None]
    latent = ((data / 2 - pushed) ** 2).mean((1, 2, 3))
    push = ((2 * pushed - data) ** 2).mean((1, 2, 3))
    assert_equal(metrics["loss_latent"], latent)
    assert_equal(metrics["loss_reconstruction"], np.zeros(ROWS))
    assert_equal(metrics["loss_push"], push)
    assert_equal(loss, (0.5 * latent + 2 * push).mean())


def test_the_teacher_changes_though_the_update_is_left_out() -> None:
    """At the last step of a stage the student's average becomes the teacher, NaNs or not."""

    class Broken(progressive_distillation.ProgressiveDistillation):
        def loss(self, inputs: base.Inputs) -> tuple[jax.Array, base.Metrics]:
            return inputs.params["w"] * jnp.nan, {}

    num_steps = 70
    step = make_train_step(
        SimpleNamespace(apply=None, null_label=1),
        Broken(),
        optax.sgd(0.1),
        {"target": 0.5, "teacher": 1.0},
        scaling=Scaling(),
        seed=0,
        num_steps=num_steps,
        row_shards=1,
        max_skipped=10,
    )
    batch = {name: jnp.zeros((1, 1, 1, 1)) for name in ("mean", "std")} | {
        "label": jnp.zeros(1, jnp.int32)
    }
    params, zero = {"w": jnp.ones(())}, jnp.zeros((), jnp.int32)
    emas = {"target": {"w": jnp.array(2.0)}, "teacher": {"w": jnp.array(3.0)}}
    for at, teacher in ((8, 3.0), (9, 2.0)):
        state = TrainState(jnp.int32(at), params, optax.sgd(0.1).init(params), emas, zero, zero)
        after, _ = step(state, batch)
        assert int(after.skipped) == 1 and float(after.params["w"]) == 1.0
        assert (float(after.emas["target"]["w"]), float(after.emas["teacher"]["w"])) == (
            2.0,
            teacher,
        )

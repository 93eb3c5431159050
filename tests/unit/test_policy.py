"""Actions and observations through objectives, network and rollouts that images go through too."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.autoencoders import load_autoencoder
from data_pipeline.demonstrate import chunk, write
from data_pipeline.errors import UserError
from data_pipeline.manifest import Manifest
from data_pipeline.tasks import load_task
from shortcut_tpu.cli import config as config_lib
from shortcut_tpu.evaluation.generator import make_generator
from shortcut_tpu.evaluation.rollouts import FIRST_EPISODE, Rollouts
from shortcut_tpu.models import NETWORKS, configure
from shortcut_tpu.objectives import OBJECTIVES, Inputs, base
from shortcut_tpu.rollout import table
from shortcut_tpu.runs.loading import load_run
from shortcut_tpu.train import train
from shortcut_tpu.training.experiment import Experiment
from shortcut_tpu.training.input import check_data

ROWS, HORIZON, ACTION, OBSERVATION = 32, 4, 3, 5
TASK = load_task("pusht_toy")


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    path = tmp_path_factory.mktemp("demonstrations")
    write(TASK, 0, 8, path)
    return path


@pytest.fixture
def config(records):
    config = config_lib.load("pusht_toy").copy_and_resolve_references()
    with config.unlocked():
        config.data.path = str(records)
        config.batch_size = 32
        config.model.update(width=16, depth=2, num_heads=2, unroll=1, patch_size=8)
        config.train.update(num_steps=6, log_every_steps=3)
        config.optimizer.warmup_steps = 2
        config.checkpoint.every_steps = 3
    return config.lock()


def network(heads, params, x, t, d, labels, **told):
    """Linear in x, and told everything; of an observation it looks at the first number."""
    label = labels.reshape(len(labels), -1)[:, 0]
    slope = jnp.sin(label) + t * params + d + sum(told.values(), jnp.zeros_like(t))
    out = x * base.along_rows(slope, x) + base.along_rows(t - d, x)
    return jnp.concatenate([out / (1 + head) for head in range(heads)], axis=-1)


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, objective in OBJECTIVES.items()
        if not (objective.needs_pairs or objective.needs_judges)
    ],
)
def test_the_loss_of_actions_is_that_of_images_with_the_same_values(name):
    """Guidance, dropped labels, strides of rows: whatever the rank of x and of labels."""
    objective = OBJECTIVES[name]()
    guided = {"guidance": 1.5, "max_guidance": 4.0, "label_dropout": 0.5}
    known = {field.name for field in dataclasses.fields(objective)}
    objective = dataclasses.replace(
        objective, **{key: value for key, value in guided.items() if key in known}
    )
    x1 = jax.random.normal(jax.random.key(1), (ROWS, HORIZON, ACTION))
    labels = jax.random.randint(jax.random.key(2), (ROWS,), 1, 9)
    params = jnp.float32(0.3)
    shared = {
        "apply": functools.partial(network, objective.heads),
        "params": params,
        "emas": {"target": params + 0.1, "teacher": params - 0.1},
        "key": jax.random.key(3),
        "step": jnp.int32(3),
        "num_steps": 100,
    }

    as_images = x1.reshape(ROWS, 2, HORIZON // 2, ACTION)
    images = Inputs(x1=as_images, labels=labels, null_label=0, **shared)
    observations = jnp.tile(labels[:, None].astype(jnp.float32), (1, OBSERVATION))
    actions = Inputs(x1=x1, labels=observations, null_label=0.0, **shared)
    expected, image_metrics = objective.loss(images)
    found, metrics = objective.loss(actions)
    assert float(expected) > 1e-3
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for key, values in image_metrics.items():
        np.testing.assert_allclose(metrics[key], values, rtol=1e-4, atol=1e-6)


def test_labels_and_observations_are_dropped_by_whole_rows():
    observations = jax.random.normal(jax.random.key(0), (4000, OBSERVATION))
    dropped = base.drop_labels(jax.random.key(1), observations, 0.25, 0.0)
    has = np.asarray(base.has_label(dropped, 0.0))
    assert 0.72 < has.mean() < 0.78
    np.testing.assert_array_equal(dropped[has], observations[has])
    assert not np.asarray(dropped[~has]).any()
    labels = jnp.arange(4000)
    same = base.drop_labels(jax.random.key(1), labels, 0.25, 4000)
    np.testing.assert_array_equal(np.asarray(base.has_label(same, 4000)), has)


def make_policy(**changes):
    options = {
        "patch_size": 2,
        "width": 16,
        "depth": 2,
        "num_heads": 2,
        "dtype": "float32",
        "network": "policy",
    }
    shapes = {"horizon": HORIZON, "channels": ACTION, "observation_size": OBSERVATION}
    return NETWORKS["policy"](configure("policy", options, **(shapes | changes)))


def test_the_network_sees_observation_time_step_size_and_the_order_of_actions():
    model = make_policy()
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: rng.normal(0, 0.3, a.shape).astype(np.float32), shapes)
    x = jnp.asarray(rng.normal(size=(2, HORIZON, ACTION)), jnp.float32)
    t, d = jnp.array([0.25, 0.5]), jnp.array([0.25, 0.5])
    seen = jnp.asarray(rng.normal(size=(2, OBSERVATION)), jnp.float32)
    out = model.apply(params, x, t, d, seen)
    assert (out.shape, out.dtype) == (x.shape, jnp.float32)
    others = (
        (x, t + 0.1, d, seen),
        (x, t, d / 2, seen),
        (x, t, d, seen.at[:, -1].add(0.5)),
        (x[:, ::-1], t, d, seen),
    )
    for other in others:
        assert np.abs(model.apply(params, *other)[:, ::-1] - out).max() > 1e-3
        assert np.abs(model.apply(params, *other) - out).max() > 1e-3
    # Each row by itself.
    alone = model.apply(params, x[1:], t[1:], d[1:], seen[1:])
    np.testing.assert_allclose(alone, out[1:], atol=1e-5)


def test_heads_lie_side_by_side_in_the_last_axis():
    model = make_policy(heads=2)
    params = model.init(jax.random.key(0))
    bias = jnp.arange(2 * 2 * ACTION, dtype=jnp.float32)
    params["final"]["project"]["bias"] = bias
    x, t = jnp.zeros((1, HORIZON, ACTION)), jnp.ones(1)
    out = model.apply(params, x, t, t, jnp.zeros((1, OBSERVATION)))
    # Of the first token the first action has the first values: its heads'.
    np.testing.assert_array_equal(out[0, :2].reshape(-1), bias)
    np.testing.assert_array_equal(out[0, 2:], out[0, :2])


def test_tokens_must_make_up_a_chunk():
    with pytest.raises(ValueError, match=r"model\.patch_size=2 does not divide data\.horizon=5"):
        make_policy(horizon=5)


def test_a_policy_is_trained_resumed_and_rolled_out(config, tmp_path):
    train(config, tmp_path)
    run = load_run(tmp_path)
    assert run.step == 6
    rollouts = Rollouts(run.experiment, seed=0, action_steps=8)
    episodes = FIRST_EPISODE + np.arange(5)
    start = TASK.start(0, episodes)
    outcome = rollouts(run.params, start, range(5), 2)
    assert outcome.states.shape == (5, TASK.max_steps + 1, 4)
    np.testing.assert_array_equal(outcome.states[:, 0], start)
    assert (outcome.states[:, 1:] != start[:, None]).any((1, 2)).all()
    np.testing.assert_allclose(outcome.distance, TASK.distance(outcome.states[:, -1]))
    np.testing.assert_array_equal(outcome.success, TASK.success(outcome.states[:, -1]))
    # An episode is the same whichever others are beside it, and another with other noise.
    some = rollouts(run.params, start[[3, 1]], [3, 1], 2)
    # For some turns: contact magnifies what rounding leaves.
    np.testing.assert_allclose(some.states[:, :25], outcome.states[[3, 1], :25], atol=1e-4)
    other = rollouts(run.params, start[[3]], [77], 2)
    assert np.abs(other.states - outcome.states[[3]]).max() > 1e-3
    assert table({2: outcome})[1].split()[:2] == ["2", "0.000"]


class Oracle:
    """In place of an objective: samples are the expert's chunks."""

    @staticmethod
    def sample(velocity, x0, observations, num_steps, keys):
        def look(observations):
            state = np.asarray(observations, np.float64)[:, :4]
            return chunk(TASK, state, np.zeros(len(state)))

        shape = jax.ShapeDtypeStruct(x0.shape, jnp.float32)
        return jax.pure_callback(look, shape, observations)


def test_rollouts_score_the_expert_as_the_simulator_does(config):
    """Chunks are done in their order, and no more of each than was asked for."""
    experiment = Experiment.from_config(config, jax.devices()[:1])
    experiment = dataclasses.replace(experiment, objective=Oracle())
    start = TASK.start(1, FIRST_EPISODE + np.arange(40))
    for action_steps in (1, 5, 16):
        outcome = Rollouts(experiment, seed=0, action_steps=action_steps)({}, start, range(40), 1)
        assert outcome.success.mean() >= 0.95
        state, needed = start, np.zeros(40)
        for _ in range(TASK.max_steps):
            needed += ~TASK.success(state)
            state = TASK.step(state, TASK.expert(state, np.zeros(40)))
        np.testing.assert_allclose(outcome.steps, needed, atol=1)


def test_what_is_no_policy_and_what_is_no_image_is_said(config, tiny_config):
    policy = Experiment.from_config(config, jax.devices()[:1])
    images = Experiment.from_config(tiny_config, jax.devices()[:1])
    with pytest.raises(UserError, match="makes actions and no images.*shortcut_tpu.rollout"):
        make_generator(policy, load_autoencoder("identity"))
    with pytest.raises(UserError, match="names no task.*shortcut_tpu.evaluate"):
        Rollouts(images, seed=0, action_steps=1)
    with pytest.raises(UserError, match="--action_steps=17: a chunk has 16 actions"):
        Rollouts(policy, seed=0, action_steps=17)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data.observation_size", 9, "give --config.data.observation_size=8$"),
        ("data.horizon", 8, "give --config.data.horizon=16$"),
        ("evaluation.every_steps", 5, "evaluation.every_steps=0.*shortcut_tpu.rollout"),
        ("evaluation.sheet_every_steps", 5, "evaluation.sheet_every_steps=0.*shortcut_tpu.rollout"),
    ],
)
def test_records_of_another_shape_are_refused(config, records, key, value, message):
    with config.unlocked():
        config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=message):
        check_data(config, str(records), Manifest.load(records))


def test_an_unknown_network_is_refused(config):
    with config.unlocked():
        config.model.network = "unet"
    known = "dit, in_context, policy"
    with pytest.raises(UserError, match=rf"model\.network='unet' is none of {known}"):
        Experiment.from_config(config, jax.devices()[:1])

"""The pushing task: its motion, its symmetries, and that it tells a mode from a mean."""

import numpy as np
import pytest

from data_pipeline.errors import UserError
from data_pipeline.tasks import load_task
from data_pipeline.tasks import pusht_toy as physics
from data_pipeline.tasks.base import uniforms

TASK = load_task("pusht_toy")
EPISODES = np.arange(300)


def acted(policy, state):
    """The states [max_steps + 1, n, 4] of episodes in which a policy acts."""
    states = [state]
    for _ in range(TASK.max_steps):
        states.append(TASK.step(states[-1], policy(states[-1])))
    return np.stack(states)


def random_walk():
    rng = np.random.default_rng(0)
    return acted(lambda state: rng.uniform(-2, 2, (len(state), 2)), TASK.start(0, EPISODES))


def mirrored(vectors):
    """Left and right exchanged, of states or actions."""
    return vectors * np.tile([-1.0, 1.0], vectors.shape[-1] // 2)


def test_starts_are_functions_of_seed_and_episode():
    state, some = TASK.start(3, EPISODES), np.array([7, 200, 3])
    np.testing.assert_array_equal(TASK.start(3, some), state[some])
    assert (TASK.start(4, EPISODES) != state).all()
    # Whoever upgrades numpy meets the same episodes: Philox4x64's raw stream.
    assert uniforms(0, np.array([0]), 2).tolist() == [[0.011546754286331562, 0.24154919656271812]]


def test_the_pusher_never_overlaps_the_block_nor_leaves_the_plane_nor_outruns_its_speed():
    states = random_walk()
    gap = np.linalg.norm(states[..., :2] - states[..., 2:], axis=-1)
    assert gap.min() > physics.CONTACT - 1e-9
    assert np.abs(states[..., :2]).max() <= 1 + physics.CONTACT
    assert np.abs(states[..., 2:]).max() <= 1 - physics.BLOCK_RADIUS
    moved = np.linalg.norm(np.diff(states[..., :2], axis=0), axis=-1)
    free = gap[:-1] > physics.CONTACT + physics.SPEED
    assert moved[free].max() <= physics.SPEED + 1e-9


def test_a_block_moves_only_where_it_is_touched_and_only_away():
    states = random_walk()
    pusher, block = states[1:, :, :2], states[:-1, :, 2:]
    shift = np.diff(states[..., 2:], axis=0)
    untouched = np.linalg.norm(states[:-1, :, :2] - block, axis=-1) > (
        physics.CONTACT + physics.SPEED
    )
    assert untouched.mean() > 0.5
    assert (shift[untouched] == 0).all()
    inside = (np.abs(states[1:, :, 2:]) < 1 - physics.BLOCK_RADIUS - 1e-9).all(-1)
    away = np.sum(shift * (block - pusher), axis=-1)
    assert away[inside].min() > -(physics.SPEED**2)
    assert (np.linalg.norm(shift, axis=-1) > 0).sum() > 100


@pytest.mark.parametrize("angle", [0.0, 0.7, 2.5, -1.9])
def test_a_push_through_the_centre_moves_the_block_as_far_along_the_same_line(angle):
    way = np.array([np.cos(angle), np.sin(angle)])
    block = np.array([0.1, -0.2])
    state = np.concatenate([block - physics.CONTACT * way, block])[None]
    for _ in range(6):
        state = TASK.step(state, way[None])
    np.testing.assert_allclose(state[0, 2:], block + 6 * physics.SPEED * way, atol=1e-12)
    np.testing.assert_allclose(state[0, :2], state[0, 2:] - physics.CONTACT * way, atol=1e-12)


def test_left_and_right_are_alike():
    """The goal lies on the axis, so motion and expert are the mirror's."""
    rng = np.random.default_rng(1)
    state, toss = TASK.start(0, EPISODES), rng.uniform(size=len(EPISODES))
    for _ in range(30):
        action = TASK.expert(state, toss) + rng.uniform(-0.5, 0.5, (len(state), 2))
        np.testing.assert_allclose(
            TASK.expert(mirrored(state), 1 - toss), mirrored(TASK.expert(state, toss)), atol=1e-9
        )
        np.testing.assert_allclose(
            TASK.step(mirrored(state), mirrored(action)),
            mirrored(TASK.step(state, action)),
            atol=1e-12,
        )
        state = TASK.step(state, action)


def test_episodes_do_not_see_each_other():
    state, toss = TASK.start(0, EPISODES), EPISODES / len(EPISODES)
    together = acted(lambda now: TASK.expert(now, toss), state)
    alone = acted(lambda now: TASK.expert(now, toss[5:6]), state[5:6])
    np.testing.assert_array_equal(alone[:, 0], together[:, 5])


@pytest.mark.parametrize("shake", [0.0, 0.8])
@pytest.mark.parametrize("toss", [0.2, 0.8])
def test_the_expert_succeeds_either_way(toss, shake):
    rng = np.random.default_rng(2)
    tosses = np.full(len(EPISODES), toss)

    def policy(state):
        return TASK.expert(state, tosses) + shake * rng.uniform(-1, 1, (len(state), 2))

    states = acted(policy, TASK.start(0, EPISODES))
    reached = np.array([TASK.success(now) for now in states]).any(0)
    assert reached.mean() >= 0.95


def test_the_mean_of_both_ways_leads_nowhere():
    """What a policy that regresses to the mean would do: the task needs one way or the other."""
    one, other = np.zeros(len(EPISODES)), np.full(len(EPISODES), 0.5)

    def policy(state):
        return (TASK.expert(state, one) + TASK.expert(state, other)) / 2

    states = acted(policy, TASK.start(0, EPISODES))
    reached = np.array([TASK.success(now) for now in states]).any(0)
    assert reached.mean() < 0.05


def test_an_unknown_task_is_named_with_those_there_are():
    with pytest.raises(UserError, match="unknown task 'push'; the known ones are pusht_toy"):
        load_task("push")

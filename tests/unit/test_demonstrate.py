"""Demonstrations as records: what the expert did is what is read, and it leads to the goal."""

import numpy as np
import pytest

from data_pipeline.demonstrate import chunk, demonstrations, write
from data_pipeline.errors import UserError
from data_pipeline.records import LatentReader, verify
from data_pipeline.tasks import load_task

TASK = load_task("pusht_toy")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("demonstrations")
    write(TASK, 5, 20, path)
    return path


def test_records_hold_what_was_demonstrated(folder):
    observations, actions = demonstrations(TASK, 5, np.arange(20))
    reader = LatentReader(folder)
    manifest = verify(folder)
    assert manifest.latent_shape == actions.shape[1:] == (16, 2)
    assert manifest.observation_size == observations.shape[1] == 8
    assert manifest.num_classes == 0
    batch = reader.read(np.arange(len(reader)))
    assert list(batch) == ["mean", "observation"]
    np.testing.assert_array_equal(batch["mean"], actions)
    np.testing.assert_array_equal(batch["observation"], observations)


def test_an_episode_is_a_function_of_seed_and_number(tmp_path, folder):
    alone = demonstrations(TASK, 5, np.array([3]))
    before = len(demonstrations(TASK, 5, np.arange(3))[0])
    for one, several in zip(alone, demonstrations(TASK, 5, np.arange(20)), strict=True):
        np.testing.assert_array_equal(one, several[before : before + len(one)])
    write(TASK, 5, 20, tmp_path)
    for path in folder.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()
    assert (demonstrations(TASK, 6, np.array([3]))[0][0] != alone[0][0]).any()


def test_half_chunks_with_a_coin_for_each_lead_to_the_goal():
    """What a perfect policy does: a coin anew whenever it looks, and half of what it planned."""
    state, rng = TASK.start(0, np.arange(200)), np.random.default_rng(0)
    for _ in range(2 * TASK.max_steps // TASK.horizon):
        toss = rng.uniform(size=200)
        actions = chunk(TASK, state, toss)
        np.testing.assert_allclose(actions[:, 0], TASK.expert(state, toss), atol=1e-6)
        for action in actions[:, : TASK.horizon // 2].swapaxes(0, 1):
            home = TASK.success(state)[:, None]
            state = np.where(home, state, TASK.step(state, action))
    assert TASK.success(state).mean() >= 0.95


def test_half_of_the_chunks_go_either_way_from_wherever_the_expert_chooses():
    """Also far to one side of the block's front: no chunk tells which way the last one went."""
    observations, actions = demonstrations(TASK, 0, np.arange(300))
    arm, goal = -observations[:, 4:6], observations[:, 6:8]

    def angle(of, to):
        cross = to[:, 0] * of[:, 1] - to[:, 1] * of[:, 0]
        return np.arctan2(cross, np.sum(of * to, axis=1))

    place, turn = angle(arm, goal), angle(actions[:, 0], arm)
    for low, high in ((-1.8, -0.6), (-0.6, 0.6), (0.6, 1.8)):
        there = (low < place) & (place < high)
        assert there.sum() > 1000
        assert 0.45 < (turn[there] > 0).mean() < 0.55


def test_records_that_are_there_are_kept(folder):
    before = (folder / "manifest.json").read_bytes()
    with pytest.raises(UserError, match="has records already"):
        write(TASK, 0, 2, folder)
    assert (folder / "manifest.json").read_bytes() == before

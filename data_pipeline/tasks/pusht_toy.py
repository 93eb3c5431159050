"""Pushing in the plane: a round pusher must bring a round block to a goal.

A small relative of Push-T ("Diffusion Policy", arXiv 2303.04137, section 6): no rotation, and
everything is known, so that a policy is learned in minutes. What makes it a test of generative
policies is kept: the pusher starts between the block and the goal and must go around the block. The
expert goes left or right by the toss of a coin, and the mean of both ways leads nowhere.

Motion is quasi-static and without friction: the pusher moves as far as it is told; a block that it
would overlap gives way along the line between the centres, until both touch.

Usage:
    task = PushToy()
    state = task.start(seed=0, episodes=np.arange(200))       # [200, 4]
    state = task.step(state, task.expert(state, toss))        # one step of all episodes
    task.success(state)                                       # [200] bool
"""

import numpy as np

from data_pipeline.tasks.base import Body, uniforms

PUSHER_RADIUS = 0.06
BLOCK_RADIUS = 0.14
CONTACT = PUSHER_RADIUS + BLOCK_RADIUS
GOAL = (0.0, 0.6)
# The block is home when its centre is so near to the goal.
TOLERANCE = 0.05
# The pusher's way in a step; it is made in parts, so that contact is found where it happens.
SPEED = 0.05
_PARTS = 5

# The expert's way around the block, and from what angle on the near side of it is the shorter one.
_ORBIT = CONTACT + 0.08
_BEHIND = np.pi / 3
# Further off the line through block and goal than this it aligns before it pushes.
_ALIGNED = 0.15


class PushToy:
    """The task; a state [n, 4] holds the centres of pusher and block in [-1, 1]^2.

    Attributes:
        action_size: an action is the pusher's velocity over `SPEED`, at most 1 long.
        observation_size: pusher, block, the way from one to the other, and from block to goal.
        horizon: actions of a chunk.
        max_steps: what an episode may take.
    """

    name = "pusht_toy"
    action_size = 2
    observation_size = 8
    horizon = 16
    max_steps = 160
    bodies = (Body(0, PUSHER_RADIUS), Body(2, BLOCK_RADIUS))
    goal = GOAL

    def start(self, seed: int, episodes: np.ndarray) -> np.ndarray:
        """States [n, 4] at the beginning; each a function of (seed, episode)."""
        draw = uniforms(seed, episodes, 4)
        block = np.stack([draw[:, 0] - 0.5, 0.4 * draw[:, 1] - 0.4], axis=1)
        # In front of the block, within 15 degrees of the line to the goal.
        way = _unit(GOAL - block)
        front = _turned(way, (draw[:, 2] - 0.5) * np.pi / 6)
        return np.concatenate([block + front * (0.26 + 0.1 * draw[:, 3:]), block], axis=1)

    def observe(self, state: np.ndarray) -> np.ndarray:
        """What a policy sees, [n, 8] float32."""
        pusher, block = np.split(state, 2, axis=1)
        seen = np.concatenate([pusher, block, block - pusher, GOAL - block], axis=1)
        return seen.astype(np.float32)

    def step(self, state: np.ndarray, action: np.ndarray) -> np.ndarray:
        """The states [n, 4] after one action each, [n, 2]."""
        pusher, block = np.split(state, 2, axis=1)
        way = action / np.maximum(np.linalg.norm(action, axis=1, keepdims=True), 1.0)
        for _ in range(_PARTS):
            pusher = np.clip(pusher + way * SPEED / _PARTS, -1, 1)
            block = _apart(pusher, block)
            # A block at the wall holds the pusher up.
            block = np.clip(block, BLOCK_RADIUS - 1, 1 - BLOCK_RADIUS)
            pusher = _apart(block, pusher)
        return np.concatenate([pusher, block], axis=1)

    def distance(self, state: np.ndarray) -> np.ndarray:
        """[n] from the block to the goal."""
        return np.linalg.norm(state[:, 2:] - GOAL, axis=1)

    def success(self, state: np.ndarray) -> np.ndarray:
        """[n] whether the block is at the goal."""
        return self.distance(state) < TOLERANCE

    def expert(self, state: np.ndarray, toss: np.ndarray) -> np.ndarray:
        """What the expert does [n, 2]: goes around the block, aligns, pushes, stops at the goal.

        Args:
            state: [n, 4].
            toss: [n] in [0, 1): counter-clockwise below 1/2. It counts only where the pusher is
                not yet behind the block.
        """
        side = np.where(toss < 0.5, 1.0, -1.0)
        pusher, block = np.split(state, 2, axis=1)
        way, arm = _unit(GOAL - block), pusher - block
        reach = np.linalg.norm(arm, axis=1, keepdims=True)
        outward = arm / np.maximum(reach, 1e-9)
        around = _turned(outward, np.full(len(state), np.pi / 2))
        # The pusher's angle around the block, 0 right behind it.
        angle = np.arctan2(
            way[:, 1] * arm[:, 0] - way[:, 0] * arm[:, 1], -np.sum(way * arm, axis=1)
        )[:, None]
        turn = np.where(np.abs(angle) < _BEHIND, -np.sign(angle), side[:, None])
        circle = _unit(around * turn + outward * (_ORBIT - reach) * 10)
        push = _unit(way - around * angle * 3)
        action = np.where(np.abs(angle) < _ALIGNED, push, circle)
        return np.where(self.success(state)[:, None], 0.0, action)


def _apart(fixed: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """Centres [n, 2] of what is moved, out of the way of what is fixed."""
    gap = moved - fixed
    distance = np.linalg.norm(gap, axis=1, keepdims=True)
    return np.where(distance < CONTACT, fixed + gap / np.maximum(distance, 1e-9) * CONTACT, moved)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def _turned(vectors: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Vectors [n, 2], each turned counter-clockwise by its angle [n]."""
    cosine, sine = np.cos(angles)[:, None], np.sin(angles)[:, None]
    x, y = vectors[:, :1], vectors[:, 1:]
    return np.concatenate([cosine * x - sine * y, sine * x + cosine * y], axis=1)

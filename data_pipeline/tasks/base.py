"""The interface of simulated tasks, and their random numbers.

Usage:
    class Reach:  # matches `Task` by its members; no need to inherit
        name = "reach"
        ...
"""

import dataclasses
from typing import Protocol

import numpy as np


@dataclasses.dataclass(frozen=True)
class Body:
    """Something round; `column` of a state and the next hold its centre."""

    column: int
    radius: float


class Task(Protocol):
    """Episodes in a simulator, all stepped together; state [n, S] is whatever the task needs."""

    @property
    def name(self) -> str:
        """The name by which `load_task` knows it."""

    @property
    def action_size(self) -> int:
        """Numbers of an action, each about in [-1, 1]."""

    @property
    def observation_size(self) -> int:
        """Numbers of an observation, each about in [-1, 1]; all zero stands for none."""

    @property
    def bodies(self) -> tuple[Body, ...]:
        """What moves and what is moved, for pictures."""

    @property
    def goal(self) -> tuple[float, float]:
        """Where the last body must go."""

    @property
    def horizon(self) -> int:
        """Actions of the chunks that demonstrations consist of."""

    @property
    def max_steps(self) -> int:
        """Actions after which an episode has failed."""

    def start(self, seed: int, episodes: np.ndarray) -> np.ndarray:
        """States [n, S] of the episodes with these numbers [n], functions of (seed, episode)."""

    def observe(self, state: np.ndarray) -> np.ndarray:
        """Observations [n, observation_size] float32."""

    def step(self, state: np.ndarray, action: np.ndarray) -> np.ndarray:
        """States [n, S] after one action each, [n, action_size]."""

    def distance(self, state: np.ndarray) -> np.ndarray:
        """How far each episode is from its goal [n]."""

    def success(self, state: np.ndarray) -> np.ndarray:
        """Whether each episode is at its goal [n]."""

    def expert(self, state: np.ndarray, toss: np.ndarray) -> np.ndarray:
        """What an expert does in each of the states, [n, action_size].

        Where several ways are equally good, `toss` [n] in [0, 1) says which it goes.
        """


def uniforms(seed: int, episodes: np.ndarray, count: int) -> np.ndarray:
    """[n, count] numbers in [0, 1), a row a function of (seed, episode).

    NumPy promises the raw stream of a bit generator for ever, and nothing of what it makes of it.
    """
    raw = [
        np.random.Philox(key=np.array([seed, episode], np.uint64)).random_raw(count)
        for episode in episodes
    ]
    return (np.stack(raw) >> np.uint64(11)) * 2.0**-53

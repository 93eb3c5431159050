"""Runs a policy in closed loop: it observes, carries out some actions, and observes again.

All episodes of a task are stepped together; the policy's chunks for all of them are sampled by one
jitted program, sharded by rows. The noise of a chunk is a function of (seed, episode, turn).

Usage:
  rollouts = Rollouts(run.experiment, seed=0, action_steps=8)
  outcome = rollouts(run.params, start, episodes, num_steps=1)
  outcome.success.mean()
"""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.tasks import load_task
from shortcut_tpu.evaluation.generator import sample_keys
from shortcut_tpu.evaluation.rows import submit
from shortcut_tpu.pod import partitioning
from shortcut_tpu.sampling import samplers
from shortcut_tpu.sampling.guidance import Guidance
from shortcut_tpu.training.experiment import Experiment

# The first episode's number: no demonstration starts where one does.
FIRST_EPISODE = 2**31

# More than any episode has; what makes one number of an episode and a turn.
_MOST_TURNS = 4096


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of n episodes.

    Attributes:
      states: [n, max_steps + 1, S]; an episode that is at its goal stands still.
      success: [n] whether it got there.
      steps: [n] actions it took.
      distance: [n] to the goal at the end.
    """

    states: np.ndarray
    success: np.ndarray
    steps: np.ndarray
    distance: np.ndarray


class Rollouts:
    """The policy of an experiment in the task that its config names."""

    def __init__(self, experiment: Experiment, *, seed: int, action_steps: int):
        """Prepares rollouts; nothing is compiled before the first.

        Args:
          experiment: the parts of the run.
          seed: of the chunks' noises.
          action_steps: actions of each chunk that are done before the next is made.

        Raises:
          UserError: the config names no task, or chunks are shorter than that.
        """
        name, horizon = experiment.config.data.get("task", ""), experiment.latent_shape[0]
        if not name:
            raise UserError(
                "this run's config names no task to act in; runs that make images are scored by "
                "`python -m shortcut_tpu.evaluate`"
            )
        if not 1 <= action_steps <= horizon:
            raise UserError(f"--action_steps={action_steps}: a chunk has {horizon} actions")
        self.task = load_task(name)
        self._experiment = experiment
        self._seed = seed
        self._action_steps = action_steps

    def __call__(
        self, params: Any, start: np.ndarray, draws: Sequence[int] | np.ndarray, num_steps: int
    ) -> Outcome:
        """Acts until all episodes are at their goal or out of time; every host gets the outcome.

        Args:
          params: the policy's weights.
          start: [n, S] states.
          draws: [n] numbers that tell the episodes' noises apart.
          num_steps: sampling steps a chunk.
        """
        task, state = self.task, start
        program = functools.partial(self._program(num_steps), params)
        first = np.asarray(draws, np.uint32) * np.uint32(_MOST_TURNS)
        states, steps = [start], np.zeros(len(start), int)
        for step in range(task.max_steps):
            there = task.success(state)
            if there.all():
                break
            turn, action = divmod(step, self._action_steps)
            if action == 0:
                mesh = self._experiment.mesh
                chunks = submit(mesh, program, task.observe(state), first + turn).result()
            steps += ~there
            state = np.where(there[:, None], state, task.step(state, chunks[:, action]))
            states.append(state)
        states += [state] * (task.max_steps + 1 - len(states))
        return Outcome(np.stack(states, 1), task.success(state), steps, task.distance(state))

    @functools.cache  # noqa: B019  (it lives as long as its command)
    def _program(self, num_steps: int) -> Any:
        """Jitted (params, observations [n, O], draws [n]) -> chunks [n, horizon, A]."""
        experiment = self._experiment
        model, shape = experiment.model, experiment.latent_shape
        guidance = Guidance.of(experiment.config.evaluation)

        def chunks(params: Any, observations: jax.Array, draws: jax.Array) -> jax.Array:
            keys = sample_keys(self._seed, draws)
            noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
            velocity = samplers.guided(
                functools.partial(model.apply, params),
                guidance.at(num_steps),
                model.null_label,
                guidance.interval,
            )
            return experiment.objective.sample(velocity, noise, observations, num_steps, keys)

        return jax.jit(experiment.placed(chunks), out_shardings=partitioning.rows(experiment.mesh))

"""Writes a workdir for imported weights, like that of a trained run.

Usage:
  make_run(config, workdir, step=400_000, params=params, average=average)
"""

import dataclasses
from typing import Any

from etils import epath
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from data_pipeline.errors import UserError
from shortcut_tpu.cli import config as config_lib
from shortcut_tpu.models import Params
from shortcut_tpu.runs import checksums
from shortcut_tpu.runs import workdir as workdir_lib
from shortcut_tpu.runs.checkpointing import Checkpoints
from shortcut_tpu.training.experiment import Experiment
from shortcut_tpu.training.train_state import TrainState


def make_run(
    config: ConfigDict,
    workdir: epath.Path,
    step: int,
    params: Params,
    average: Params,
) -> None:
    """Writes a checkpoint and the config into a fresh workdir.

    The optimizer's state is a fresh one. Training with the same workdir goes on from the step.

    Args:
      config: of the run.
      workdir: must hold no checkpoint.
      step: of the checkpoint, above 0.
      params: the weights that training would go on from.
      average: what every average of the config becomes.

    Raises:
      UserError: the workdir holds a run, is in use or cannot be written.
    """
    folder = workdir / "checkpoints"
    with workdir_lib.claimed(workdir):
        if (workdir / config_lib.CONFIG_FILE).exists() or checksums.steps(folder.resolve()):
            raise UserError(f"{workdir} holds a run already; give another --workdir")
        experiment = Experiment.from_config(config, jax.devices())
        state = dataclasses.replace(
            _fresh_state(experiment, params),
            step=jnp.asarray(step, jnp.int32),
            emas={name: _placed(experiment, average) for name in experiment.ema_decays},
        )
        with Checkpoints(folder, config.checkpoint.keep, config) as checkpoints:
            checkpoints.save(step, state)
            checkpoints.wait()
            if checkpoints.failures:
                raise UserError(f"{folder}: the checkpoint cannot be written")
        config_lib.save(config, workdir)


def _placed(experiment: Experiment, params: Params) -> Params:
    """Weights in buffers of their own, where the run's lie."""
    like = experiment.abstract_state.params
    return jax.tree.map(lambda leaf, to: jax.device_put(leaf, to.sharding), params, like)


def _fresh_state(experiment: Experiment, params: Params) -> TrainState:
    """The state of a run that starts from these weights."""

    @dataclasses.dataclass
    class Given:
        """In place of a model: its fresh weights are the given ones."""

        params: Params

        def init(self, _: jax.Array) -> Params:
            return self.params

    def create(params: Params) -> TrainState:
        given: Any = Given(params)
        return TrainState.create(
            jax.random.key(0), given, experiment.optimizer, experiment.ema_decays
        )

    shardings = jax.tree.map(lambda leaf: leaf.sharding, experiment.abstract_state)
    return jax.jit(create, out_shardings=shardings)(_placed(experiment, params))

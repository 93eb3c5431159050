"""A trained run opened again: its config, its parts and an average of its weights.

Usage:
  run = load_run(workdir, step=None, ema="evaluation")
  images = make_generator(run.experiment, run.autoencoder)(run.params, ...)
"""

import dataclasses
from typing import Any

from etils import epath
import jax

from data_pipeline.autoencoders import Autoencoder, load_autoencoder
from data_pipeline.errors import UserError
from shortcut_tpu import config as config_lib
from shortcut_tpu.checkpoints import Checkpoints
from shortcut_tpu.experiment import Experiment


@dataclasses.dataclass(frozen=True)
class Run:
    """What a checkpoint of a run needs to sample.

    Attributes:
      step: the checkpoint's step.
      params: the average that was asked for, laid over this machine's devices.
    """

    experiment: Experiment
    autoencoder: Autoencoder
    step: int
    params: Any


def load_run(workdir: epath.Path, step: int | None = None, ema: str = "evaluation") -> Run:
    """Opens a checkpoint on whatever devices are here.

    Args:
      workdir: the --workdir of the run.
      step: which checkpoint; the newest if None.
      ema: which average of the weights.

    Raises:
      UserError: there is no such run, checkpoint or average.
    """
    config = config_lib.restore(workdir)
    if ema not in config.emas:
        raise UserError(f"--ema={ema} is none of this run's {', '.join(sorted(config.emas))}")
    autoencoder = load_autoencoder(config.data.autoencoder)
    experiment = Experiment.from_config(config, jax.devices(), autoencoder.scale)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        part = {"emas": {ema: experiment.abstract_state.emas[ema]}}
        found, restored = checkpoints.restore_part(part, step)
    return Run(experiment, autoencoder, found, restored["emas"][ema])

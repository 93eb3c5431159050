"""Opens a trained run: its config, its parts and an average of its weights.

Usage:
  run = load_run("runs/digits")
  velocity = run.experiment.model.apply(run.params, x, t, d, labels)

`evaluation.samples` makes images of it.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

from etils import epath
import jax

from data_pipeline.autoencoders import Autoencoder, load_autoencoder
from data_pipeline.errors import UserError
from shortcut_tpu.cli import config as config_lib
from shortcut_tpu.cli.console import say
from shortcut_tpu.objectives import Objective
from shortcut_tpu.runs.snapshots import require_average, restore_average
from shortcut_tpu.training.experiment import Experiment
from shortcut_tpu.training.latents import has_statistics


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained run, ready to sample.

    Attributes:
      experiment: config, model, objective and mesh.
      autoencoder: decodes what the model generates.
      step: the step of the checkpoint.
      ema: which average of the weights it is.
      params: the weights of that average, on this machine's devices.
    """

    experiment: Experiment
    autoencoder: Autoencoder
    step: int
    ema: str
    params: Any


def load_run(workdir: epath.PathLike, step: int | None = None, ema: str = "evaluation") -> Run:
    """Opens a checkpoint on the devices of this machine, whatever devices it was trained on.

    Args:
      workdir: the --workdir of the run.
      step: which checkpoint; the newest if None.
      ema: which average of the weights; power:0.07 for one of that width, of the power averages
        that the run has kept.

    Raises:
      UserError: there is no such run, checkpoint or average.
    """
    workdir = epath.Path(workdir)
    config = config_lib.restore(workdir)
    require_average(config, ema, "--ema")
    if not has_statistics(config.data):
        raise UserError(f"{workdir}: its config has no data.latent_mean and data.latent_std")
    autoencoder = load_autoencoder(config.data.autoencoder)
    experiment = Experiment.from_config(config, jax.devices(), autoencoder.scale)
    abstract = experiment.abstract_state.params
    found, params = restore_average(workdir, config, abstract, ema, step)
    return Run(experiment, autoencoder, found, ema, params)


def require_steps(objective: Objective, asked: Sequence[int]) -> tuple[int, ...]:
    """Those of the numbers of sampling steps that a method can do; says which it cannot.

    Raises:
      UserError: it can do none of them.
    """
    steps = objective.step_counts(asked)
    if not steps:
        raise UserError(f"{objective.name} makes samples in one step only: --steps=1")
    if len(steps) < len(asked):
        say(f"{objective.name} makes samples in one step only; the other --steps are left out")
    return steps

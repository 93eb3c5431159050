"""Builds a config's objective, network and optimizer, without devices.

Usage:
  parts = make_parts(config)
  model = parts.network(parts.network_config)
"""

from typing import Any, NamedTuple

from ml_collections import ConfigDict
import optax

from data_pipeline.errors import UserError
from shortcut_tpu.models import NETWORKS, Model, configure, data_keys
from shortcut_tpu.objectives import Objective, make_objective
from shortcut_tpu.training.optimizers import make_optimizer
from shortcut_tpu.training.power_averages import averages


class Parts(NamedTuple):
    """The parts of a run that depend on its config alone; a network takes long to build."""

    objective: Objective
    network: type[Model]
    network_config: Any
    optimizer: optax.GradientTransformation


def make_parts(config: ConfigDict) -> Parts:
    """Builds them.

    Raises:
      UserError: values of the config do not go together.
    """
    try:
        objective = make_objective(config.objective.to_dict())
        for name in (*objective.ema_names, "evaluation"):
            if name not in averages(config):
                raise UserError(f"the run needs an average of the weights named emas.{name}")
        network = objective.network or config.model.network
        network_config = configure(
            network,
            config.model.to_dict(),
            **{key: config.data[key] for key in data_keys(network)},
            conditions=objective.conditions,
            heads=objective.heads,
            smooth_times=objective.smooth_times,
            told_time=objective.told_time,
        )
        return Parts(objective, NETWORKS[network], network_config, make_optimizer(config))
    except ValueError as error:
        raise UserError(str(error)) from None

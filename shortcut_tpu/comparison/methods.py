"""The config of one method in a comparison, and what its training costs.

Usage:
  run = method_config(with_recipe(config, "meanflow"), "meanflow", seed=0)
  training_flops(run)
"""

import jax
from ml_collections import ConfigDict

from data_pipeline import staging
from data_pipeline.manifest import Manifest, pair_fields, row_shapes
from shortcut_tpu.cli import command
from shortcut_tpu.models import NETWORKS
from shortcut_tpu.objectives import OBJECTIVES
from shortcut_tpu.training.experiment import Experiment
from shortcut_tpu.training.input import needs_pairs


def method_config(config: ConfigDict, name: str, seed: int) -> ConfigDict:
    """The config of one method's run, without what belongs to others.

    So a run does not become another where the hyperparameters of another method change.
    """
    config = config.copy_and_resolve_references()
    objective = OBJECTIVES[name]
    own = config.objective[objective.group]
    with config.unlocked():
        recipe = config.objective.recipe
        config.objective = ConfigDict({"name": name, "recipe": recipe, objective.group: own})
        used = objective.network or config.model.network
        for network in {*NETWORKS} & {*config.model} - {used}:
            del config.model[network]
        config.seed = seed
        rates = config.comparison.learning_rates
        config.optimizer.learning_rate = rates.get(objective.group, config.optimizer.learning_rate)
        config.train.num_steps = config.comparison.num_steps or config.train.num_steps
        del config.comparison
        # Scored here, once, at the steps of the table.
        config.evaluation.update({"every_steps": 0, "sheet_every_steps": 0})
    return config


def with_recipe(config: ConfigDict, name: str) -> ConfigDict:
    """The command's config with the recipe of a method, if it takes recipes, and its own budget."""
    found = command.config_for(name).copy_and_resolve_references()
    with found.unlocked():
        found.batch_size, found.train.num_steps = config.batch_size, config.train.num_steps
    return found


def training_flops(config: ConfigDict) -> int:
    """Operations in the products of a whole training, without recomputation."""
    experiment = Experiment.from_config(config, jax.devices())
    data = Manifest.load(staging.local(config.data.path, config.data.stage))
    fields = data.fields
    if needs_pairs(config):
        fields = pair_fields(data.latent_shape)
    return experiment.model_flops(row_shapes(fields)) * config.train.num_steps

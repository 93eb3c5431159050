"""A run small enough to measure on a laptop: its config, its records and its step.

Usage:
  run = Run(small_config(name="shortcut"), jax.devices()[:1])
  print(run.seconds_a_step(steps=3))
"""

from collections.abc import Sequence
import time
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from shortcut_tpu.cli import config as config_lib
from shortcut_tpu.pod import partitioning
from shortcut_tpu.training.experiment import Experiment


def small_config(objective: str = "shortcut", **model: Any) -> ConfigDict:
    """A DiT on latents of 16x16x4 that takes about half a second a step on two cores.

    Without guidance, which costs rows of its own, and with one average of the weights.

    Args:
      objective: its name.
      **model: keys of `config.model` with other values.
    """
    config = config_lib.load("imagenet256_b").copy_and_resolve_references()
    with config.unlocked():
        config.batch_size = 32
        config.data.image_size = 16
        config.objective.name = objective
        config.objective.shortcut.guidance = 1.0
        shapes = {"width": 192, "depth": 4, "num_heads": 3, "dtype": "float32"}
        config.model.update(shapes | model)
    return config.lock()


def random_batch(config: ConfigDict) -> dict[str, np.ndarray]:
    """Latents and labels of a batch."""
    rng = np.random.default_rng(0)
    shape = (config.batch_size, config.data.image_size, config.data.image_size)
    return {
        "mean": rng.standard_normal((*shape, config.data.channels), np.float32),
        "label": rng.integers(config.data.num_classes, size=config.batch_size, dtype=np.int32),
    }


def abstract_batch(experiment: Experiment) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of `random_batch`, laid out on the experiment's mesh."""
    batch = random_batch(experiment.config)
    return experiment.abstract_batch({name: (a.dtype, a.shape[1:]) for name, a in batch.items()})


class Run:
    """An experiment in the middle of its training, compiled."""

    def __init__(self, config: ConfigDict, devices: Sequence[jax.Device]):
        self.experiment = Experiment.from_config(config, devices)
        self._batch = partitioning.to_global(
            self.experiment.mesh, random_batch(config), config.batch_size
        )
        self.state = self.experiment.init_state()
        self.compiled = self.experiment.train_step.lower(self.state, self._batch).compile()
        self.seconds_a_step(1)

    def seconds_a_step(self, steps: int) -> float:
        """Trains so many steps."""
        started = time.perf_counter()
        for _ in range(steps):
            self.state, _ = self.compiled(self.state, self._batch)
        jax.block_until_ready(self.state)
        return (time.perf_counter() - started) / steps

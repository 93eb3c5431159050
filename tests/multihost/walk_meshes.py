"""Trains over meshes of 8, 4, 2 and 8 devices in turn: walk_meshes.py DATA CHECKPOINTS -> JSON.

Prints, of each leg, the losses of its steps, those of the same steps had the mesh not changed, and
whether what it restored was what the mesh before had saved.
"""

import json
from pathlib import Path
import sys

import jax
import numpy as np

from data_pipeline.loader import BatchSource
from data_pipeline.records import LatentReader
from shortcut_tpu.pod import partitioning
from shortcut_tpu.runs.checkpointing import Checkpoints
from shortcut_tpu.training.experiment import Experiment
from tests.multihost.tiny_config import get_config

WALK, STEPS_EACH = (8, 4, 2, 8), 20

jax.config.update("jax_threefry_partitionable", True)
data, folder = map(Path, sys.argv[1:])
config = get_config()
# The warm-up of the real config: in a short one Adam makes whole steps of rounding errors.
config.optimizer.warmup_steps = 500
rows = (0, config.batch_size)
steps = len(WALK) * STEPS_EACH
source = BatchSource(
    LatentReader(data), seed=0, batch_size=config.batch_size, rows=rows, num_steps=steps
)
experiments = {n: Experiment.from_config(config, jax.devices()[:n]) for n in set(WALK)}


def advance(experiment, state, first, last):
    losses = []
    for step in range(first, last):
        batch = partitioning.to_global(experiment.mesh, source[step], config.batch_size)
        state, metrics = experiment.train_step(state, batch)
        losses.append(float(metrics["loss"]))
    return state, losses


def arrays(state):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


walked, unbroken, same = [], [], []
state, before = experiments[8].init_state(), experiments[8]
with Checkpoints(folder, keep=2, config=config) as checkpoints:
    for index, devices in enumerate(WALK):
        first, last = index * STEPS_EACH, (index + 1) * STEPS_EACH
        if index:
            saved = arrays(state)
            state = checkpoints.restore(experiments[devices].abstract_state, first)
            same.append(all(map(np.array_equal, saved, arrays(state))))
            unchanged = checkpoints.restore(before.abstract_state, first)
            unbroken.append(advance(before, unchanged, first, last)[1])
        state, losses = advance(experiments[devices], state, first, last)
        if index:
            walked.append(losses)
        checkpoints.save(last, state)
        checkpoints.wait()
        before = experiments[devices]
print(json.dumps({"walked": walked, "unbroken": unbroken, "same": same}))

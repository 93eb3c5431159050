"""One host of a rehearsed pod: trains a few steps and writes what it saw of them.

  python -m tests.multihost.worker RECORDS OUTPUT NUM_STEPS

Every host writes OUTPUT/host-N.npz: its rows of each global batch, the noise that the sharded
program drew for them, and the losses.
"""

from pathlib import Path
import sys

import jax
import numpy as np

from data_pipeline.loader import make_loader
from shortcut_tpu.cli import config as config_lib
from shortcut_tpu.pod import distributed, partitioning
from shortcut_tpu.training.experiment import Experiment
from shortcut_tpu.training.train_step import step_key


def main() -> None:
    records, output, num_steps = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    distributed.initialize()
    config = config_lib.load("digits").copy_and_resolve_references()
    with config.unlocked():
        config.data.path = records
        config.batch_size = 32
        config.model.patch_size = 2
        config.objective.shortcut.bootstrap_share = 0.25
        config.model.update({"width": 16, "depth": 2, "num_heads": 2, "unroll": 1})
    experiment = Experiment.from_config(config, jax.devices())
    mesh = experiment.mesh
    start, stop = partitioning.local_rows(mesh, config.batch_size)
    loader = make_loader(
        records,
        seed=config.seed,
        batch_size=config.batch_size,
        rows=(start, stop),
        start_step=0,
        num_steps=num_steps,
    )
    draw = jax.jit(
        lambda step: jax.random.normal(step_key(config.seed, step), (config.batch_size, 8, 8, 1)),
        out_shardings=partitioning.rows(mesh),
    )

    def local(array: jax.Array) -> np.ndarray:
        shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
        return np.concatenate([np.asarray(shards[first]) for first in sorted(shards)])

    state = experiment.init_state()
    images, labels, noises, losses = [], [], [], []
    for step, batch in enumerate(loader):
        on_mesh = partitioning.to_global(mesh, batch, config.batch_size)
        images.append(local(on_mesh["mean"]))
        labels.append(local(on_mesh["label"]))
        noises.append(local(draw(step)))
        state, metrics = experiment.train_step(state, on_mesh)
        losses.append(float(experiment.summarize(metrics)["loss"]))
    loader.close()
    np.savez(
        output / f"host-{jax.process_index()}.npz",
        rows=np.array([start, stop]),
        images=np.stack(images, 1),
        labels=np.stack(labels, 1),
        noises=np.stack(noises, 1),
        losses=np.array(losses),
    )


if __name__ == "__main__":
    main()

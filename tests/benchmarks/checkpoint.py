"""How long a save keeps the training loop waiting, beside how long the whole save takes."""

import time

import jax

from shortcut_tpu.runs.checkpointing import Checkpoints
from shortcut_tpu.training.experiment import Experiment
from tests.benchmarks.comparison import Bar, Comparison, Options
from tests.benchmarks.small import small_config


def measure(options: Options) -> list[Comparison]:
    # Four copies of the parameters: weights, two moments and an average.
    config = small_config(width=384, depth=3, num_heads=6)
    state = Experiment.from_config(config, jax.devices()[:1]).init_state()
    jax.block_until_ready(state)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 2**20
    blocked, whole = [], []
    with Checkpoints(options.folder, keep=1, config=config) as checkpoints:
        for step in range(options.rounds + 1):
            started = time.perf_counter()
            checkpoints.save(step, state)
            returned = time.perf_counter() - started
            checkpoints.wait()
            # The first save also makes what the others use again.
            if step:
                blocked.append(returned)
                whole.append(time.perf_counter() - started)
    name = f"time blocked by a save over the whole save, {size:.0f} MiB"
    return [Comparison(name, "s", blocked, whole, Bar(high=0.15))]

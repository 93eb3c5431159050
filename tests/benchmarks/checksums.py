"""The share of a save that reading it again for its checksums takes: by one host, by each of eight.

The hosts' shares are read one after another, the slowest counts: on a pod all read at once.
"""

import time

from etils import epath
import jax
import numpy as np

from shortcut_tpu.runs import checksums
from shortcut_tpu.runs.checkpointing import Checkpoints
from shortcut_tpu.training.experiment import Experiment
from tests.benchmarks.comparison import Bar, Comparison, Options
from tests.benchmarks.small import small_config

_HOSTS = 8


def random_state(experiment: Experiment) -> object:
    """A state of random bits: weights that start as zeros would be compressed to nothing."""
    rng = np.random.default_rng(0)

    def fill(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        bits = np.frombuffer(rng.bytes(leaf.size * leaf.dtype.itemsize), leaf.dtype)
        return jax.device_put(bits.reshape(leaf.shape), leaf.sharding)

    return jax.tree.map(fill, experiment.abstract_state)


def seconds_to_check(folder: epath.Path, step: int, host: int, hosts: int) -> float:
    """How long a host takes to read its share of a checkpoint and to compare its checksums."""
    started = time.perf_counter()
    problem = checksums.find_problem(folder, step, host, hosts)
    assert problem is None, problem
    return time.perf_counter() - started


def measure(options: Options) -> list[Comparison]:
    experiment = Experiment.from_config(
        small_config(width=768, depth=12, num_heads=12), jax.devices()[:1]
    )
    state = random_state(experiment)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 2**30
    folder = epath.Path(options.folder) / "checkpoints"
    alone, shared, whole, whole_shared = [], [], [], []
    with Checkpoints(folder, keep=1, config=experiment.config) as checkpoints:
        for step in range(options.rounds):
            started = time.perf_counter()
            checkpoints.save(step, state)
            checkpoints.wait()
            whole.append(time.perf_counter() - started)
            alone.append(seconds_to_check(folder, step, 0, 1))
            shares = [seconds_to_check(folder, step, host, _HOSTS) for host in range(_HOSTS)]
            shared.append(max(shares))
            # What is written is the same, whoever reads it again.
            whole_shared.append(whole[-1] - alone[-1] + shared[-1])
    return [
        Comparison(f"checksums of a save by one host, {size:.1f} GiB", "s", alone, whole),
        Comparison(f"by each of {_HOSTS} hosts", "s", shared, whole_shared, Bar(high=0.1)),
        Comparison(f"one of {_HOSTS} hosts over one host", "s", shared, alone, Bar(high=0.25)),
    ]

"""The least number of bytes that a train step must move between chips.

Usage:
  needed = required_bytes(experiment, passes=layer_passes(depths, step, *arguments))
"""

import math

import jax
import jax.numpy as jnp

from shortcut_tpu.pod import partitioning
from shortcut_tpu.training.experiment import Experiment


def required_bytes(experiment: Experiment, passes: float, *, gradients: bool = True) -> int:
    """Bytes for each chip: the gradients, and with fsdp the weights of every pass.

    A gradient counts once, in the dtype of the computation: the size of what is summed. Weights
    that are sharded over fsdp count as gathered, once a pass through the layers. Where several
    slices sum a gradient it is scattered, exchanged and gathered, so counts twice and the share
    that crosses. With a tensor axis a chip's part of each weight counts; activations that the axis
    moves do not.

    Args:
      experiment: the run.
      passes: through the layers, in which each weight is needed: forward, backward, every target.
      gradients: whether the program has any.
    """
    mesh = experiment.mesh
    itemsize = jnp.dtype(experiment.config.model.dtype).itemsize
    slices = partitioning.count_slices(mesh.devices.flat)
    reducers = math.prod(mesh.shape[axis] for axis in partitioning.ROW_AXES)
    total = 0
    for leaf in jax.tree.leaves(experiment.abstract_state.params):
        axes = [axis for axis in jax.tree.leaves(tuple(leaf.sharding.spec)) if axis]
        held = math.prod(mesh.shape[axis] for axis in axes if axis == partitioning.TENSOR)
        size = leaf.size // held * itemsize
        if gradients and reducers > 1:
            total += size if slices == 1 else 2 * size + size // (reducers // slices)
        if partitioning.FSDP in axes and mesh.shape[partitioning.FSDP] > 1:
            total += round(passes * size)
            # Scattered over fsdp, a gradient is summed over the other rows' devices by its parts.
            if gradients and reducers > mesh.shape[partitioning.FSDP]:
                total += size // mesh.shape[partitioning.FSDP]
    return total

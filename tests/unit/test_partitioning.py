"""The mesh that a config gets, and where the arrays of a run lie on it."""

import jax
import numpy as np
import pytest

from data_pipeline.errors import UserError
from shortcut_tpu.cli import config as config_lib
from shortcut_tpu.pod import partitioning
from shortcut_tpu.training.experiment import Experiment

CHOOSE = {"data": -1, "fsdp": 1, "stride": -1, "tensor": -1}


def choose(axes, num_devices, batch_size, row_stride=4, num_heads=16, slices=1):
    return partitioning.choose_shape(
        CHOOSE | axes,
        num_devices,
        batch_size=batch_size,
        row_stride=row_stride,
        num_heads=num_heads,
        width=1152,
        slices=slices,
    )


@pytest.mark.parametrize(
    ("axes", "num_devices", "batch_size", "shape"),
    [
        ({}, 8, 256, (8, 1, 1, 1)),
        ({}, 64, 256, (64, 1, 1, 1)),
        # Fewer whole strides than devices: four devices share each of 64 strides.
        ({}, 256, 256, (64, 1, 4, 1)),
        ({}, 256, 512, (128, 1, 2, 1)),
        # A row for every device is the most that sharing gives; then each row is shared.
        ({}, 256, 64, (16, 1, 4, 4)),
        ({"stride": 1}, 256, 256, (64, 1, 1, 4)),
        ({}, 256, 2048, (256, 1, 1, 1)),
        ({"fsdp": 16}, 256, 2048, (16, 16, 1, 1)),
        # The weights over all devices that hold rows of their own, as far as they can be divided.
        ({"fsdp": -1}, 64, 256, (1, 64, 1, 1)),
        ({"fsdp": -1}, 256, 256, (1, 64, 4, 1)),
        ({"fsdp": -1}, 256, 1024, (2, 128, 1, 1)),
        ({"fsdp": -1, "data": 4}, 64, 256, (4, 16, 1, 1)),
        ({"data": 4, "fsdp": 2, "tensor": 2}, 16, 64, (4, 2, 1, 2)),
        ({"tensor": 8}, 8, 4, (1, 1, 1, 8)),
    ],
)
def test_mesh_holds_whole_strides_on_every_device(axes, num_devices, batch_size, shape):
    assert choose(axes, num_devices, batch_size) == shape
    assert batch_size % (shape[0] * shape[1] * 4) == 0


@pytest.mark.parametrize(
    ("axes", "num_devices", "batch_size", "message"),
    [
        (
            {"stride": 1, "tensor": 1},
            256,
            256,
            "batch sizes that can: 1024, 2048, or any other multiple of 1024",
        ),
        ({}, 256, 250, "batch sizes that can: 240, 256, or any other multiple of 16"),
        (
            {"data": 3},
            8,
            64,
            r"\(3, 1, -1, -1\) cannot be laid over 8 devices with 16 attention heads",
        ),
        ({"tensor": 32}, 32, 64, "tensor must divide the heads"),
    ],
)
def test_what_cannot_be_laid_out_is_refused(axes, num_devices, batch_size, message):
    with pytest.raises(UserError, match=message):
        choose(axes, num_devices, batch_size)


@pytest.mark.parametrize(
    "shape", [(8, 1, 1, 1), (2, 2, 1, 2), (1, 2, 4, 1), (1, 8, 1, 1), (1, 1, 1, 8)]
)
def test_weights_moments_and_averages_lie_alike(tiny_config, devices, shape):
    with tiny_config.unlocked():
        tiny_config.mesh.update(dict(zip(partitioning.AXES, shape, strict=True)))
        tiny_config.model.num_heads = 8
        tiny_config.model.width = 32
    experiment = Experiment.from_config(tiny_config, devices)
    state = experiment.init_state()
    weights = jax.tree.leaves(state.params)
    copies = [
        state.opt_state[0].mu,
        state.opt_state[0].nu,
        state.emas["target"],
        state.emas["evaluation"],
    ]
    for copy in copies:
        for weight, leaf in zip(weights, jax.tree.leaves(copy), strict=True):
            assert leaf.sharding == weight.sharding
    parts = shape[1] * shape[3]
    kernel = state.params["blocks"]["mlp_in"]["kernel"]
    assert kernel.addressable_shards[0].data.size * parts == kernel.size
    held = sum(leaf.addressable_shards[0].data.size for leaf in weights)
    blocks = sum(leaf.size for leaf in jax.tree.leaves(state.params["blocks"]))
    everything = sum(leaf.size for leaf in weights)
    assert held <= everything - blocks * 0.9 * (1 - 1 / parts)


def test_the_same_state_on_every_mesh(tiny_config, devices):
    """Initial weights are a function of the seed, not of the sharding."""

    def leaves(config, devices):
        state = Experiment.from_config(config, devices).init_state()
        return [np.asarray(leaf) for leaf in jax.tree.leaves(state.params)]

    alone = leaves(tiny_config, devices[:1])
    with tiny_config.unlocked():
        tiny_config.mesh.fsdp = 2
        tiny_config.mesh.tensor = 2
    for a, b in zip(alone, leaves(tiny_config, devices), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_axis_that_divides_no_weight_is_named(devices):
    config = config_lib.load("digits").copy_and_resolve_references()
    with config.unlocked():
        config.mesh.fsdp = 8
        config.model.width = 36
        config.batch_size = 64
    experiment = Experiment.from_config(config, devices)
    with pytest.raises(UserError, match=r"mesh.fsdp=8 does not divide 36, a dimension of .*blocks"):
        _ = experiment.abstract_state


def test_local_rows_join_to_the_global_batch(devices):
    mesh = partitioning.make_mesh((2, 2, 1, 2), devices)
    assert partitioning.row_shards(mesh) == 4
    assert partitioning.local_rows(mesh, 8) == (0, 8)
    batch = {"x": np.arange(16.0).reshape(8, 2)}
    joined = partitioning.to_global(mesh, batch, 8)["x"]
    np.testing.assert_array_equal(joined, batch["x"])
    assert joined.sharding == partitioning.rows(mesh)


def test_weights_are_not_gathered_between_slices():
    assert choose({"fsdp": -1}, 128, 512, slices=2) == (2, 64, 1, 1)

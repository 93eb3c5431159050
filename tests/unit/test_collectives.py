"""The shortcut objective moves nothing between devices that flow matching does not."""

import collections

import jax
import numpy as np
import pytest

from shortcut_tpu.compiled.collectives import collectives
from shortcut_tpu.compiled.hlo import Program
from shortcut_tpu.pod import partitioning
from shortcut_tpu.training.experiment import Experiment


def moved(compiled, mesh):
    """Bytes by operation, over all collectives of a compiled program."""
    total = collections.Counter()
    for collective in collectives(Program.parse(compiled.as_text()), mesh.shape):
        total[collective.op] += collective.total_bytes
    return dict(total)


def step_collectives(config, devices, name):
    with config.unlocked():
        config.objective.name = name
    experiment = Experiment.from_config(config, devices)
    fields = {"mean": (np.dtype("float16"), (8, 8, 1)), "label": (np.dtype("int32"), ())}
    batch = experiment.abstract_batch(fields)
    compiled = experiment.train_step.lower(experiment.abstract_state, batch).compile()
    return moved(compiled, experiment.mesh)


@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_data_parallel_shortcut_moves_what_flow_matching_moves(tiny_config, devices, guidance):
    """To the byte: the gradients, and a loss of four bytes."""
    with tiny_config.unlocked():
        tiny_config.batch_size = 8 * 4 * 7
        tiny_config.objective.shortcut.guidance = guidance
    flow = step_collectives(tiny_config, devices, "flow_matching")
    assert flow == step_collectives(tiny_config, devices, "shortcut")
    params = Experiment.from_config(tiny_config, devices).abstract_state.params
    gradients = sum(leaf.size * 4 for leaf in jax.tree.leaves(params))
    assert set(flow) == {"all-reduce"}
    assert gradients <= flow["all-reduce"] <= gradients + 64


def test_devices_that_share_strides_train_as_those_that_do_not(tiny_config, devices):
    """Rows of a stride on devices of their own: the same step, and no rows move for it."""
    rng = np.random.default_rng(0)
    batch = {
        "mean": rng.normal(size=(tiny_config.batch_size, 8, 8, 1)).astype(np.float16),
        "label": rng.integers(0, 10, tiny_config.batch_size).astype(np.int32),
    }
    found = {}
    for data, stride in ((8, 1), (2, 4)):
        with tiny_config.unlocked():
            tiny_config.objective.shortcut.guidance = 1.5
            tiny_config.mesh.update({"data": data, "stride": stride, "tensor": 1})
        experiment = Experiment.from_config(tiny_config, devices)
        on_mesh = partitioning.to_global(experiment.mesh, batch, tiny_config.batch_size)
        state = experiment.init_state()
        compiled = experiment.train_step.lower(state, on_mesh).compile()
        metrics = compiled(state, on_mesh)[1]
        found[stride] = [float(metrics["loss"]), float(metrics["grad_norm"])]
    np.testing.assert_allclose(found[4], found[1], rtol=1e-5)
    # Beside the gradients: what the network made of the strides that a device holds.
    params = experiment.abstract_state.params
    by_op = moved(compiled, experiment.mesh)
    gradients = sum(leaf.size * 4 for leaf in jax.tree.leaves(params))
    assert gradients <= by_op.pop("all-reduce") <= gradients + 64
    assert by_op == {"all-gather": tiny_config.batch_size // 2 * 8 * 8 * 4}


def test_with_fsdp_the_targets_gather_weights_and_move_nothing_else(tiny_config, devices):
    """Forward and backward gather the layers once each, the two passes of the target once more."""
    with tiny_config.unlocked():
        tiny_config.mesh.fsdp = 8
        # Recomputed in the backward pass, so gathered for it again.
        tiny_config.model.remat = "full"
    flow = step_collectives(tiny_config, devices, "flow_matching")
    shortcut = step_collectives(tiny_config, devices, "shortcut")
    params = Experiment.from_config(tiny_config, devices).abstract_state.params
    kernels = sum(
        leaf.size * 4
        for leaf in jax.tree.leaves(params)
        if partitioning.FSDP in jax.tree.leaves(tuple(leaf.sharding.spec))
    )
    assert shortcut.pop("all-gather") == 4 * kernels
    assert flow.pop("all-gather") == 2 * kernels
    assert shortcut == flow
    assert set(flow) <= {"all-reduce", "reduce-scatter"}


def test_weights_gathered_once_a_step(tiny_config, devices, well_compiled):
    """Those that are trained and those of the target, once each: it learns the same."""
    rng = np.random.default_rng(0)
    batch = {
        "mean": rng.normal(size=(tiny_config.batch_size, 8, 8, 1)).astype(np.float16),
        "label": rng.integers(0, 10, tiny_config.batch_size).astype(np.int32),
    }
    found, gathered = {}, {}
    for gather in ("layer", "step"):
        with tiny_config.unlocked():
            tiny_config.mesh.update({"fsdp": 4, "stride": 2, "gather": gather})
        experiment = Experiment.from_config(tiny_config, devices)
        on_mesh = partitioning.to_global(experiment.mesh, batch, tiny_config.batch_size)
        state = experiment.init_state()
        compiled = experiment.train_step.lower(state, on_mesh).compile()
        metrics = compiled(state, on_mesh)[1]
        found[gather] = [float(metrics[name]) for name in ("loss", "grad_norm", "update_norm")]
        moves = collectives(Program.parse(compiled.as_text()), experiment.mesh.shape)
        gathered[gather] = sum(
            c.total_bytes for c in moves if (c.op, c.axis) == ("all-gather", partitioning.FSDP)
        )
    np.testing.assert_allclose(found["step"], found["layer"], rtol=1e-5)
    kernels = sum(
        leaf.size * 4
        for leaf in jax.tree.leaves(experiment.abstract_state.params)
        if partitioning.FSDP in jax.tree.leaves(tuple(leaf.sharding.spec))
    )
    assert gathered["step"] == 2 * kernels < gathered["layer"]


def test_rows_stay_where_they_are(tiny_config, devices):
    """A batch laid out over the mesh is split and merged into rows of two kinds without moving."""
    from shortcut_tpu.objectives.rows import append, detach, put, take

    mesh = partitioning.make_mesh((8, 1, 1, 1), devices)
    rows = partitioning.rows(mesh)

    @jax.jit
    def shuffle(x):
        kept = put(x, 4, take(x, 4) * 2)
        both, extra = detach(append(kept, take(kept, 2), 2), 2)
        return jax.lax.with_sharding_constraint(put(both, 2, extra + 1), rows)

    compiled = shuffle.lower(jax.ShapeDtypeStruct((64, 3), "float32", sharding=rows)).compile()
    assert moved(compiled, mesh) == {}

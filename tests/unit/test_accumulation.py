"""A batch in parts is the same batch: the same loss and gradients, in less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from data_pipeline.errors import UserError
from shortcut_tpu.cli import schema
from shortcut_tpu.objectives import OBJECTIVES, Inputs
from shortcut_tpu.pod import partitioning
from shortcut_tpu.training.accumulation import in_parts
from shortcut_tpu.training.experiment import Experiment
from shortcut_tpu.training.parts import make_parts


def small(**train):
    config = common.get_config()
    config.batch_size = 64
    config.model.update(width=16, depth=2, num_heads=2, dtype="float32")
    config.model.in_context.aux_head_depth = 1
    config.data.update(image_size=8, num_classes=3)
    config.train.update(train)
    return config


@pytest.mark.parametrize(
    ("name", "network"), [("shortcut", "dit"), ("improved_meanflow", "in_context")]
)
def test_the_loss_and_its_gradients_are_those_of_the_whole_batch(name, network):
    """Also where a pass has other rows than the batch, and is differentiated in forward mode."""
    config = small()
    config.objective.name, config.model.network = name, network
    parts = make_parts(config)
    model, objective = parts.network(parts.network_config), OBJECTIVES[name]()
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: jnp.asarray(0.2 * rng.normal(size=a.shape), "float32"), shapes)
    x1 = jnp.asarray(rng.normal(size=(64, 8, 8, 4)), "float32")
    counts = []

    def counted(params, x, *rest, **conditions):
        counts.append(len(x))
        return model.apply(params, x, *rest, **conditions)

    def graded(accumulate):
        apply = in_parts(counted, batch_size=64, accumulate=accumulate, shards=2)

        def loss(params):
            given = {"null_label": 3, "key": jax.random.key(1), "num_steps": 10, "row_shards": 2}
            inputs = Inputs(
                apply=apply,
                params=params,
                emas={name: params for name in objective.ema_names},
                x1=x1,
                labels=jnp.arange(64) % 3,
                step=jnp.zeros((), jnp.int32),
                **given,
            )
            return objective.loss(inputs)

        compiled = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(params).compile()
        return compiled(params), compiled.memory_analysis().temp_size_in_bytes

    whole, memory = graded(1)
    assert max(counts) > 64 or name == "shortcut"
    counts.clear()
    in_four, less = graded(4)
    assert max(counts) == 16
    assert less < 0.6 * memory
    np.testing.assert_allclose(in_four[0][0], whole[0][0], rtol=1e-6)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(in_four), strict=True):
        scale = np.nanmax(np.abs(one)) + 1e-30
        np.testing.assert_allclose(other / scale, one / scale, atol=2e-6, equal_nan=True)


def test_a_step_on_four_devices_in_parts_is_the_step_on_one(devices):
    """The network in context, its weights over fsdp and tensor, its rows over fsdp."""
    found = []
    for accumulate, mesh in ((1, {"tensor": 1}), (4, {"fsdp": 2, "tensor": 2})):
        config = small(accumulate=accumulate)
        config.objective.name, config.model.network = "improved_meanflow", "in_context"
        config.mesh.update(mesh)
        experiment = Experiment.from_config(config, devices[:accumulate])
        rng = np.random.default_rng(0)
        batch = {
            "mean": rng.normal(size=(64, 8, 8, 4)).astype(np.float16),
            "label": (np.arange(64) % 3).astype(np.int32),
        }
        batch = partitioning.to_global(experiment.mesh, batch, 64)
        state, first = experiment.train_step(experiment.init_state(), batch)
        found.append((first, experiment.train_step(state, batch)[1]))
    for one, other in zip(*found, strict=True):
        for name in ("loss", "grad_norm", "update_norm"):
            np.testing.assert_allclose(other[name], one[name], rtol=2e-5)


def test_parts_must_be_rows_of_every_device(devices):
    with pytest.raises(UserError, match="accumulate=3: 64 rows over 2 devices are 32 each, so it"):
        Experiment.from_config(small(accumulate=3), devices[:2])
    config = small(accumulate=2)
    config.objective.name = "koopman"
    with pytest.raises(UserError, match="accumulate=2: it may be 1 for koopman"):
        schema.check(config)

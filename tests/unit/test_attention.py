"""Attention by the kernels is attention by XLA: outputs, both modes of derivatives, any mesh.

The kernels are interpreted: what a TPU's compiler makes of them is `test_preflight`'s to see.
"""

import functools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shortcut_tpu.cli import config as config_lib
from shortcut_tpu.models.attention import MIN_TOKENS, attention
from shortcut_tpu.models.dit import DiTConfig
from shortcut_tpu.models.flash_attention import flash_attention
from shortcut_tpu.models.placement import placed
from shortcut_tpu.objectives import Inputs
from shortcut_tpu.pod import partitioning
from shortcut_tpu.training.experiment import Experiment
from shortcut_tpu.training.flops import count_flops, kernel_flops

flash = functools.partial(flash_attention, interpret=True)


def reference(q, k, v):
    """softmax(q k^T) v on [B, H, N, D]."""
    return jax.nn.softmax(q @ k.mT, axis=-1) @ v


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), "float32")


def arrays(tokens, width, batch=1, heads=2):
    """q, k and v, and as many directions; logits of a standard deviation of 2."""
    q, *others = (normal(seed, batch, heads, tokens, width) for seed in range(6))
    return (2 * q * width**-0.5, *others[:2]), others[2:]


# 2048 tokens are two tiles of keys and of queries.
@pytest.mark.parametrize(("tokens", "width"), [(256, 72), (1024, 64), (2048, 8)])
def test_outputs_and_derivatives_are_those_of_the_formula(tokens, width):
    """In float32, to 1e-5 of the largest value."""
    primals, moves = arrays(tokens, width)
    cotangent = normal(7, *primals[0].shape)

    def all_of(function):
        out, change = jax.jvp(function, primals, tuple(moves))
        return out, change, *jax.vjp(function, *primals)[1](cotangent)

    found = jax.jit(functools.partial(all_of, flash))()
    for ours, expected in zip(found, all_of(reference), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * abs(expected).max())


def test_the_largest_logits_may_come_last():
    """Keys that grow along the sequence: each tile's weights outshine those of the tile before."""
    (q, k, v), moves = arrays(2048, 8)
    k = k * jnp.linspace(1, 20, 2048)[:, None]
    found = jax.jvp(flash, (q, k, v), tuple(moves))
    for ours, expected in zip(found, jax.jvp(reference, (q, k, v), tuple(moves)), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4 * abs(expected).max())


def test_bfloat16_costs_no_more_than_its_rounding():
    """Against float32 on the same rounded inputs, within 2 % of the largest value."""
    primals, moves = jax.tree.map(lambda a: a.astype("bfloat16"), arrays(256, 72))
    wide = jax.tree.map(lambda a: a.astype("float32"), (primals, tuple(moves)))
    found = jax.jvp(flash, primals, tuple(moves))
    for ours, expected in zip(found, jax.jvp(reference, *wide), strict=True):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_allclose(
            ours.astype("float32"), expected, rtol=0, atol=0.02 * abs(expected).max()
        )


@pytest.mark.parametrize("shape", [(2, 1, 2, 2), (1, 4, 1, 2), (8, 1, 1, 1)])
@pytest.mark.parametrize("batch", [8, 4])
def test_any_mesh_gives_the_same(devices, shape, batch):
    """Of a batch of 8, and of a pass over 4 rows of it, which the stride axis does not split."""
    mesh = partitioning.make_mesh(shape, devices)
    (q, k, v), _ = arrays(128, 8, batch=batch)
    q, k, v = (a.swapaxes(1, 2) for a in (q, k, v))
    cotangent = normal(7, *q.shape)

    def pull(kind, *primals):
        with placed(partitioning.MeshPlacement(mesh, batch_size=8)):
            function = functools.partial(attention, scale=0.7, kind=kind)
            out, change = jax.jvp(function, primals, primals[::-1])
            return out, change, *jax.vjp(function, *primals)[1](cotangent)

    found = jax.jit(functools.partial(pull, "pallas"))(q, k, v)
    expected = jax.jit(functools.partial(pull, "xla"))(q, k, v)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), found, expected
    )


def placement(platform):
    return types.SimpleNamespace(platform=platform, heads=lambda kernel, *arrays: kernel(*arrays))


@pytest.mark.parametrize(
    ("kind", "platform", "tokens", "by_kernel"),
    [
        ("auto", "tpu", MIN_TOKENS, True),
        ("auto", "tpu", MIN_TOKENS - 128, False),
        ("auto", "tpu", MIN_TOKENS + 8, False),
        ("auto", "cpu", MIN_TOKENS, False),
        ("auto", None, MIN_TOKENS, False),
        ("pallas", "tpu", 256, True),
        ("pallas", None, 256, False),
        ("xla", "tpu", MIN_TOKENS, False),
    ],
)
def test_the_choice_follows_the_target(kind, platform, tokens, by_kernel):
    q = jax.ShapeDtypeStruct((2, tokens, 4, 72), "bfloat16")

    def attend(q):
        return attention(q, q, q, scale=1.0, kind=kind)

    with placed(placement(platform) if platform else None):
        assert bool(kernel_flops(attend, q)) == by_kernel


def test_kinds_that_cannot_be_are_refused():
    shapes = {"channels": 4, "width": 16, "depth": 2, "num_heads": 2, "num_classes": 10}
    config = functools.partial(DiTConfig, patch_size=2, **shapes)
    with pytest.raises(ValueError, match="attention='flash' is none of auto, xla, pallas"):
        config(image_size=32, attention="flash")
    with pytest.raises(ValueError, match="multiple of 128 tokens and these are 16: take auto"):
        config(image_size=8, attention="pallas")


def test_operations_of_kernels_count():
    """Two products forwards, five more backwards, six for a tangent; of a mesh all parts."""
    q = jax.ShapeDtypeStruct((8, 256, 4, 64), "bfloat16")
    product = 2 * 8 * 4 * 256 * 256 * 64

    def attend(q, k, v):
        return attention(q, k, v, scale=1.0, kind="pallas")

    def gradients(q, k, v):
        return jax.grad(lambda *args: attend(*args).sum(), (0, 1, 2))(q, k, v)

    def change(q, k, v):
        return jax.jvp(attend, (q, k, v), (v, k, q))

    mesh = partitioning.make_mesh((2, 1, 2, 2), jax.devices())
    for where in (placement("tpu"), partitioning.MeshPlacement(mesh, batch_size=8)):
        with placed(where):
            assert count_flops(attend, q, q, q) == 2 * product
            # Beside the kernels the backward pass has one sum over each row.
            assert count_flops(gradients, q, q, q) == pytest.approx(7 * product, rel=2e-3)
            assert count_flops(change, q, q, q) == 8 * product
            # What one device executes of it.
            assert sum(kernel_flops(attend, q, q, q).values()) in (2 * product, product // 4)


def test_a_method_of_both_modes_learns_the_same(devices):
    """Improved MeanFlow's loss and gradients to 1e-4, on a mesh and by XLA on one device.

    Its network has scanned layers that are recomputed, and noise for weights.
    """
    config = config_lib.load("digits").copy_and_resolve_references().unlock()
    config.batch_size, config.objective.name = 4, "improved_meanflow"
    config.data.image_size = 16
    config.model.update({"width": 16, "depth": 2, "num_heads": 2, "patch_size": 1, "unroll": 1})
    config.model.update({"dtype": "float32", "remat": "dots"})
    rng = np.random.default_rng(0)
    x1 = rng.normal(size=(4, 16, 16, 1)).astype("float32")
    labels = rng.integers(10, size=4)

    def learn(kind, mesh):
        config.model.attention = kind
        config.mesh.update(mesh)
        experiment = Experiment.from_config(config, devices[: math.prod(mesh.values())])
        model, rows = experiment.model, partitioning.rows(experiment.mesh)

        def loss(params, x1, labels):
            inputs = Inputs(
                apply=model.apply,
                params=params,
                emas={},
                x1=x1,
                labels=labels,
                null_label=model.null_label,
                key=jax.random.key(0),
                step=jnp.zeros((), "int32"),
                num_steps=10,
            )
            return experiment.objective.loss(inputs)[0]

        shapes = jax.eval_shape(model.init, jax.random.key(0))
        params = jax.tree.map(lambda a: normal(a.size, *a.shape) / 10, shapes)
        step = jax.jit(experiment.placed(jax.value_and_grad(loss)))
        return step(params, *jax.device_put((x1, labels), rows))

    on_mesh = learn("pallas", {"data": 1, "stride": 2, "tensor": 2})
    alone = learn("xla", {"data": 1, "stride": 1, "tensor": 1})
    for found, expected in zip(jax.tree.leaves(on_mesh), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * abs(expected).max())

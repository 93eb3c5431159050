"""The DiT as a function: its start, its conditions, its numerics. Parity is in another file."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from shortcut_tpu.models import DiT, DiTConfig
from shortcut_tpu.models.dit import layer_norm
from shortcut_tpu.models.embeddings import level_of, sincos_2d, sinusoidal
from shortcut_tpu.models.patches import from_patches, to_patches
from shortcut_tpu.models.placement import placed
from shortcut_tpu.models.stacks import layers_a_turn
from shortcut_tpu.training.flops import count_flops

CONFIG = DiTConfig(
    image_size=8,
    channels=3,
    patch_size=2,
    width=32,
    depth=3,
    num_heads=2,
    num_classes=5,
    dtype="float32",
)


def random_params(model, scale=0.2):
    """Parameters of which none is zero, so that every path through the network counts."""
    leaves, tree = jax.tree.flatten(model.init(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [
        leaf + scale * jax.random.normal(k, leaf.shape)
        for leaf, k in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(tree, noisy)


def inputs(rows=4):
    key = jax.random.key(7)
    return (
        jax.random.normal(key, (rows, 8, 8, 3)),
        jnp.linspace(0, 0.9, rows),
        2.0 ** -jnp.arange(rows),
        jnp.arange(rows) % 5,
    )


def test_fresh_network_is_zero_and_its_blocks_are_the_identity():
    """adaLN-Zero: all gates and the final projection start at 0 (arXiv 2212.09748, section 3.2)."""
    model = DiT(CONFIG)
    params = model.init(jax.random.key(0))
    assert not jnp.any(params["blocks"]["modulation"]["kernel"])
    assert not jnp.any(model.apply(params, *inputs()))
    faithful = DiT(dataclasses.replace(CONFIG, faithful=True)).init(jax.random.key(0))
    assert jnp.any(faithful["blocks"]["modulation"]["kernel"])


@pytest.mark.parametrize("argument", range(4))
def test_every_condition_reaches_the_output(argument):
    model = DiT(CONFIG)
    params, before = random_params(model), list(inputs())
    after = list(before)
    after[argument] = jnp.roll(before[argument], 1, axis=0)
    change = model.apply(params, *after) - model.apply(params, *before)
    assert jnp.abs(change).max() > 1e-3


def test_rows_do_not_see_each_other():
    model = DiT(CONFIG)
    params, batch = random_params(model), inputs()
    alone = model.apply(params, *(a[2:3] for a in batch))
    np.testing.assert_allclose(alone[0], model.apply(params, *batch)[2], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("changes", [{"unroll": 3}, {"remat": "full"}, {"remat": "dots"}])
def test_scan_and_recomputation_change_no_gradient(changes):
    def gradient(config):
        model = DiT(config)
        params = random_params(DiT(CONFIG))
        return jax.jit(jax.grad(lambda p: jnp.square(model.apply(p, *inputs())).sum()))(params)

    expected, found = gradient(CONFIG), gradient(dataclasses.replace(CONFIG, **changes))
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.abs(a).max()))


@pytest.mark.parametrize(
    ("platform", "depth", "turns"),
    [("tpu", 4, 1), ("gpu", 28, 28), ("cpu", 4, 1)],
)
def test_layers_are_written_out_where_a_scan_costs_time(platform, depth, turns):
    with placed(SimpleNamespace(platform=platform)):
        assert layers_a_turn(-1, depth) == turns
        assert layers_a_turn(2, depth) == 2


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_norm_is_the_definition(offset):
    """(x - E x) / sqrt(E (x - E x)^2 + 1e-6), also of rows far from zero and of constant ones."""
    x = np.random.default_rng(0).normal(offset, 1.0, (5, 64)).astype(np.float32)
    exact = x.astype(np.float64)
    exact -= exact.mean(-1, keepdims=True)
    exact /= np.sqrt(np.square(exact).mean(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(layer_norm(jnp.asarray(x)), exact, atol=1e-5 + 2e-6 * offset**2)
    assert np.abs(layer_norm(jnp.full((2, 64), 3.7))).max() < 1e-2


def on_a_tpu():
    """As networks are traced for one TPU."""
    same = {name: lambda x: x for name in ("inputs", "output", "rows", "params")}
    return SimpleNamespace(platform="tpu", whole=False, weights=lambda _, w: w, **same)


def test_sums_by_products_change_no_output_and_no_derivative():
    """On a TPU sums are products with ones, and the derivative of the norm

        d y = (d x - E d x - y E (y d x)) / sqrt(var x + 1e-6)

    is stated, for both modes. Here in float32, against what differentiates itself.
    """
    model = DiT(dataclasses.replace(CONFIG, remat="dots"))
    params, (x, *others) = random_params(model), inputs()

    def all_of(params, x):
        def apply(params, x):
            return model.apply(params, x, *others)

        out, moved = jax.jvp(apply, (params, x), (params, jnp.cos(x)))
        return out, moved, jax.grad(lambda *a: jnp.square(apply(*a)).sum(), (0, 1))(params, x)

    def lowered():
        return jax.jit(lambda *a: all_of(*a)).lower(params, x)

    plain = lowered()
    operations = count_flops(lambda *a: all_of(*a), params, x)
    with placed(on_a_tpu()):
        by_products = lowered()
        assert count_flops(lambda *a: all_of(*a), params, x) == operations
    products = [program.as_text().count("dot_general") for program in (plain, by_products)]
    assert products[0] < products[1]
    expected, found = (program.compile()(params, x) for program in (plain, by_products))
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.abs(a).max()))


def test_bfloat16_computes_in_bfloat16_and_answers_in_float32():
    model32, model16 = DiT(CONFIG), DiT(dataclasses.replace(CONFIG, dtype="bfloat16"))
    params = random_params(model32, scale=0.05)
    exact, rounded = model32.apply(params, *inputs()), model16.apply(params, *inputs())
    assert rounded.dtype == jnp.float32
    error = jnp.abs(rounded - exact).max() / jnp.abs(exact).max()
    assert 1e-5 < error < 0.05
    text = jax.jit(model16.apply).lower(params, *inputs()).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert products
    assert all("bf16" in line for line in products)


@pytest.mark.parametrize(("size", "millions"), [("S", 33), ("B", 130), ("L", 458), ("XL", 675)])
def test_sizes_are_those_of_the_dit_paper(size, millions):
    """arXiv 2212.09748, Table 4, but for the embedding of the step size."""
    model = DiT(
        DiTConfig(
            image_size=32, channels=4, patch_size=2, num_classes=1000, **common.DIT_SIZES[size]
        )
    )
    params = jax.eval_shape(model.init, jax.random.key(0))
    step_embed = sum(leaf.size for leaf in jax.tree.leaves(params.pop("step_embed")))
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert total / 1e6 == pytest.approx(millions, rel=0.01)
    assert step_embed < 0.04 * total


def test_position_embedding_tells_all_patches_apart():
    table = sincos_2d(16, 4)
    distances = np.linalg.norm(table[:, None] - table[None], axis=-1)
    assert (distances + np.eye(16) > 0.1).all()
    # Rows are the slow axis: patches 0 and 1 share the row's half and not the column's.
    np.testing.assert_allclose(table[0, 8:], table[1, 8:])
    assert np.abs(table[0, :8] - table[1, :8]).max() > 0.1


def test_sinusoid_is_cosine_then_sine_of_geometric_frequencies():
    features = sinusoidal(jnp.array([0.0, 2.0]), 8)
    np.testing.assert_allclose(features[0], [1, 1, 1, 1, 0, 0, 0, 0])
    angles = 2.0 * 10_000.0 ** -(np.arange(4) / 4)
    np.testing.assert_allclose(features[1], [*np.cos(angles), *np.sin(angles)], rtol=1e-6)


def test_level_is_log2_of_the_inverse_step_size():
    np.testing.assert_allclose(
        level_of(jnp.array([1, 0.5, 1 / 128, 1 / 1024, 0.0]), 7), [0, 1, 7, 7, 7], atol=1e-5
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 3}, "patch_size=3 does not divide"),
        ({"num_heads": 5}, r"width=32 must be a multiple of 4 and of model.num_heads=5"),
        ({"remat": "some"}, "remat='some' is none of none, dots, full"),
        ({"dtype": "float16"}, "dtype='float16'"),
    ],
)
def test_impossible_configs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_patches_of_an_odd_grid() -> None:
    """Token 7 i + j is the square at row i and column j, and each comes back to its place."""
    x = jnp.arange(2 * 28 * 28 * 3.0).reshape(2, 28, 28, 3)
    tokens = np.asarray(to_patches(x, 4))
    for i in range(7):
        for j in range(7):
            square = x[:, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4]
            np.testing.assert_array_equal(tokens[:, 7 * i + j], square.reshape(2, -1))
    np.testing.assert_array_equal(from_patches(jnp.asarray(tokens), 4), x)

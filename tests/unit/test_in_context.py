"""The network with conditions in its context; its parity with iMF's code is in another file."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shortcut_tpu.models.in_context import InContext, InContextConfig, rotated
from shortcut_tpu.objectives import OBJECTIVES, Inputs

SHAPES = {"image_size": 8, "channels": 4, "num_classes": 3, "patch_size": 2}
SHAPES |= {"width": 16, "depth": 3, "num_heads": 2, "aux_head_depth": 1, "dtype": "float32"}


def made(objective):
    """The network as an objective asks for it."""
    told = {name: getattr(objective, name) for name in ("conditions", "heads", "smooth_times")}
    return InContext(InContextConfig(**SHAPES, **told, told_time=objective.told_time, remat="dots"))


@pytest.mark.parametrize(
    "name", [name for name, objective in OBJECTIVES.items() if not objective.network]
)
def test_every_objective_trains_it(name):
    """Its loss can be differentiated, also where it is made by forward mode or of two outputs."""
    objective = OBJECTIVES[name]()
    model = made(objective)

    def loss(params, x, key):
        inputs = Inputs(
            apply=model.apply,
            params=params,
            emas={name: params for name in (*objective.ema_names, "teacher")},
            x1=x,
            x0=x,
            labels=jnp.arange(16) % 3,
            null_label=model.null_label,
            key=key,
            step=jnp.zeros((), jnp.int32),
            num_steps=10,
        )
        return objective.loss(inputs)

    params = jax.eval_shape(model.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((16, 8, 8, 4), jnp.float32)
    (value, _), grads = jax.eval_shape(
        jax.value_and_grad(loss, has_aux=True), params, x, jax.random.key(0)
    )
    assert value.shape == ()
    assert jax.tree.map(lambda a: a.shape, grads) == jax.tree.map(lambda a: a.shape, params)


def test_rotary_positions_tell_differences_alone():
    """<R(m) q, R(n) k> is a function of m - n (arXiv 2104.09864, equation 11); in an image, of the
    differences of rows and columns, and conditions lie at no place."""
    rng = np.random.default_rng(0)
    query, key = (jnp.asarray(rng.normal(size=(1, 1, 1, 8)), jnp.float32) for _ in range(2))

    def products(config):
        """[N, N] of one query and one key put at each position."""
        tokens = config.num_tokens
        at = [jnp.broadcast_to(x, (1, tokens, 1, 8)) for x in (query, key)]
        turn = jax.jit(lambda x: rotated(x, config.angles()))
        turned = (turn(x)[0, :, 0] for x in at)
        return np.einsum("md,nd->mn", *turned)

    config = InContextConfig(**SHAPES, told_time=False)
    found = products(config)
    assert found.shape == (28, 28) and np.ptp(found) > 1
    for offset in (-3, 0, 5):
        diagonal = np.diagonal(found, offset)
        np.testing.assert_allclose(diagonal, diagonal[0], atol=1e-5)

    found = products(InContextConfig(**SHAPES, told_time=False, rotary="patches"))
    conditions = 28 - 16
    np.testing.assert_allclose(found[:conditions, :conditions], found[0, 0], atol=1e-6)
    patches = found[conditions:, conditions:].reshape(4, 4, 4, 4)
    assert np.ptp(patches) > 1
    np.testing.assert_allclose(patches[0, 1, 2, 3], patches[1, 0, 3, 2], atol=1e-5)
    assert abs(patches[0, 1, 2, 3] - patches[0, 1, 3, 2]) > 1e-3


def test_its_parameters_are_as_many_as_the_paper_says():
    """B/2 89M, M/2 174M, L/2 409M, XL/2 610M (arXiv 2512.02012), without v's blocks."""
    sizes = {89: (768, 12, 12), 174: (768, 24, 12), 409: (1024, 32, 16), 610: (1024, 48, 16)}
    for millions, (width, depth, heads) in sizes.items():
        config = InContextConfig(
            **{"image_size": 32, "channels": 4, "num_classes": 1000, "patch_size": 2},
            **{"width": width, "depth": depth, "num_heads": heads, "mlp_ratio": 8 / 3},
            conditions=OBJECTIVES["improved_meanflow"].conditions,
            heads=2,
            told_time=False,
        )
        shapes = jax.eval_shape(InContext(config).init, jax.random.key(0))
        del shapes["heads"]["head_1"]["blocks"]
        count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        assert round(count / 1e6) == millions


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"faithful": True}, "model.faithful=True: it may be False"),
        ({"heads": 2, "aux_head_depth": 4}, "aux_head_depth=4: it may be at most model.depth=3"),
        ({"rotary": "patches", "width": 12}, "heads of a multiple of 4"),
    ],
)
def test_shapes_that_make_no_network_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        InContextConfig(**SHAPES | change)

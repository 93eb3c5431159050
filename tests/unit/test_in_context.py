"""The network with conditions in its context; its parity with iMF's code is in another file."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from shortcut_tpu.models.in_context import InContext, InContextConfig, rotated
from shortcut_tpu.objectives import OBJECTIVES
from shortcut_tpu.training.experiment import Experiment

SHAPES = {"image_size": 8, "channels": 4, "num_classes": 3, "patch_size": 2}
SHAPES |= {"width": 16, "depth": 3, "num_heads": 2, "aux_head_depth": 1, "dtype": "float32"}


@pytest.mark.parametrize(
    "name", [name for name, objective in OBJECTIVES.items() if not objective.network]
)
def test_every_objective_trains_it(name, devices):
    """The whole step can be traced: forward, backward and in forward mode, two outputs or one."""
    config = common.get_config()
    config.batch_size = 16
    config.model.update({key: SHAPES[key] for key in ("width", "depth", "num_heads", "patch_size")})
    config.model.update(network="in_context", mlp_ratio=8 / 3, remat="dots")
    config.model.in_context.aux_head_depth = 1
    config.data.update({key: SHAPES[key] for key in ("image_size", "channels", "num_classes")})
    config.objective.name = name
    config.optimizer.name = "muon"
    experiment = Experiment.from_config(config, devices[:1])
    fields = {"mean": ("float16", (8, 8, 4)), "label": ("int32", ())}
    if experiment.objective.needs_pairs:
        fields["noise"] = ("float16", (8, 8, 4))
    batch, state = experiment.abstract_batch(fields), experiment.abstract_state
    after, metrics = jax.eval_shape(experiment.train_step, state, batch)
    assert metrics["loss"].shape == ()
    assert jax.tree.map(lambda a: a.shape, after) == jax.tree.map(lambda a: a.shape, state)


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

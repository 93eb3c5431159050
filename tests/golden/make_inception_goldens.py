"""Remakes inception.npz: what the packages pytorch-fid and torch compute on seeded weights.

Usage:
    $ python tests/golden/make_inception_goldens.py  # with torch, torchvision and pytorch-fid
"""

from pathlib import Path
import sys
from unittest import mock

import numpy as np
from pytorch_fid import inception
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.golden.torch_weights import inception_images, inception_weights

FILE = Path(__file__).with_name("inception.npz")


def network() -> torch.nn.Module:
    """pytorch-fid's network, which fetches its weights wherever it is made, with seeded ones."""

    with (
        mock.patch.object(inception, "load_state_dict_from_url", return_value={}),
        mock.patch.object(torch.nn.Module, "load_state_dict"),
    ):
        model = inception.fid_inception_v3().eval()
    shapes = {
        name: tuple(weight.shape)
        for name, weight in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    weights = {k: torch.from_numpy(v) for k, v in inception_weights(shapes).items()}
    model.load_state_dict(weights, strict=False)
    return model


@torch.no_grad()
def outputs(model: torch.nn.Module, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Pool and spatial features and logits of images [n, H, W, 3] in [-1, 1]."""
    kept = {}
    for name in ("Mixed_6d.branch1x1", "avgpool"):
        model.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: kept.update({name: output})
        )
    logits = model(torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels, -1, 1))))
    spatial = kept["Mixed_6d.branch1x1"][:, :7].permute(0, 2, 3, 1)
    return {
        "pool": kept["avgpool"].flatten(1).numpy(),
        "spatial": spatial.flatten(1).numpy(),
        "logits": logits.numpy(),
    }


def main() -> None:
    """Writes the file."""
    np.savez_compressed(FILE, **outputs(network(), inception_images()))


if __name__ == "__main__":
    main()

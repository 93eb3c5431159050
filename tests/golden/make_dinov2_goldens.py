"""Remakes dinov2.npz: class tokens by the official code, on seeded weights of small networks.

Usage:
    $ python tests/golden/make_dinov2_goldens.py --clone=DIR  # of facebookresearch/dinov2
    # with torch installed
"""

import argparse
from pathlib import Path
import sys

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.golden.torch_weights import dinov2_images, dinov2_weights

FILE = Path(__file__).with_name("dinov2.npz")
WIDTH, DEPTH, SIDE = 128, 2, 5
# The official code's name of each tensor that the `transformers` package calls otherwise.
NAMES = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "encoder.layer": "blocks",
    "attention.output.dense": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "mlp.weights_in": "mlp.w12",
    "mlp.weights_out": "mlp.w3",
    "layernorm": "norm",
}


def official_names(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors as the official code names them, with queries, keys and values in one."""
    found = {}
    for name, tensor in tensors.items():
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        found[name] = tensor
    for index in range(DEPTH):
        for kind in ("weight", "bias"):
            place = f"blocks.{index}.attention.attention"
            parts = [found.pop(f"{place}.{part}.{kind}") for part in ("query", "key", "value")]
            found[f"blocks.{index}.attn.qkv.{kind}"] = np.concatenate(parts)
    return found


def tokens(clone: Path, gated: bool) -> np.ndarray:
    """[2, WIDTH] of the fixed images, on 4 x 4 patches of 5 x 5 learned positions."""
    import torch

    sys.path.insert(0, str(clone))
    from dinov2.models.vision_transformer import DinoVisionTransformer

    model = DinoVisionTransformer(
        img_size=14 * SIDE,
        patch_size=14,
        embed_dim=WIDTH,
        depth=DEPTH,
        num_heads=WIDTH // 64,
        init_values=1.0,
        block_chunks=0,
        ffn_layer="swiglufused" if gated else "mlp",
    ).eval()
    tensors = official_names(dinov2_weights(WIDTH, DEPTH, SIDE, gated))
    state = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
    missing = model.load_state_dict(state, strict=False)
    assert missing.missing_keys == ["mask_token"] and not missing.unexpected_keys, missing
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    pixels = (dinov2_images() * 0.5 + 0.5 - mean) / std
    with torch.no_grad():
        nchw = torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels, -1, 1), np.float32))
        return model(nchw).numpy()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--clone", type=Path, required=True)
    given = parser.parse_args()
    np.savez_compressed(FILE, plain=tokens(given.clone, False), gated=tokens(given.clone, True))

"""Pseudo-random torch-like weights, a function of their name, so that golden files hold none.

Usage:
    weights = torch_weights({"conv_in.weight": (8, 3, 3, 3), "conv_in.bias": (8,)})
"""

from collections.abc import Mapping
import math
import zlib

import numpy as np


def torch_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Normal entries of standard deviation 1 / sqrt(fan in); norms' weights, variances about 1."""
    weights = {}
    for name, shape in shapes.items():
        noise = np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape)
        if len(shape) > 1:
            noise /= math.sqrt(math.prod(shape[1:]))
        elif name.endswith(("weight", "running_var")):
            noise = 1 + 0.1 * noise
        else:
            noise *= 0.1
        weights[name] = noise.astype(np.float32)
    return weights


def inception_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """`torch_weights` whose kernels make up for ReLU, so that the input shows in the output."""
    weights = torch_weights(shapes)
    return {k: v * np.float32(1.4) if v.ndim == 4 else v for k, v in weights.items()}


def images(shape: tuple[int, ...]) -> np.ndarray:
    """Uniform noise in [-1, 1], always the same."""
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


def inception_images() -> np.ndarray:
    """Two images of coarse squares, [2, 107, 107, 3] in [-1, 1].

    Smaller than the protocols' 299 pixels: every layer still sees padding, in a few seconds.
    """
    return np.kron(images((2, 9, 9, 3)), np.ones((1, 12, 12, 1), np.float32))[:, :107, :107]


def efficientnet_images() -> np.ndarray:
    """Two images of coarse squares, [2, 224, 224, 3] in [-1, 1]."""
    return np.kron(images((2, 7, 7, 3)), np.ones((1, 32, 32, 1), np.float32))


def dinov2_images() -> np.ndarray:
    """Two images of coarse squares, [2, 56, 56, 3] in [-1, 1]: 4 x 4 patches."""
    return np.kron(images((2, 8, 8, 3)), np.ones((1, 7, 7, 1), np.float32))


def dinov2_weights(width: int, depth: int, side: int, gated: bool) -> dict[str, np.ndarray]:
    """`torch_weights` by the names of the `transformers` package, without a mask token."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.position_embeddings": (1, 1 + side**2, width),
        "embeddings.patch_embeddings.projection.weight": (width, 3, 14, 14),
        "embeddings.patch_embeddings.projection.bias": (width,),
        "layernorm.weight": (width,),
        "layernorm.bias": (width,),
    }
    # Two thirds of four times the width, up to a multiple of 8.
    inner = 344 if gated else 4 * width
    into, out = ("weights_in", "weights_out") if gated else ("fc1", "fc2")
    for place in (f"encoder.layer.{index}" for index in range(depth)):
        linear = {f"attention.attention.{part}": width for part in ("query", "key", "value")}
        linear |= {"attention.output.dense": width, f"mlp.{into}": (1 + gated) * inner}
        for name, outputs in linear.items():
            shapes[f"{place}.{name}.weight"] = (outputs, width)
            shapes[f"{place}.{name}.bias"] = (outputs,)
        shapes[f"{place}.mlp.{out}.weight"] = (width, inner)
        for name in (f"mlp.{out}.bias", "layer_scale1.lambda1", "layer_scale2.lambda1"):
            shapes[f"{place}.{name}"] = (width,)
        for name in ("norm1", "norm2"):
            shapes |= {f"{place}.{name}.{kind}": (width,) for kind in ("weight", "bias")}
    weights = torch_weights(shapes)
    # As large as what they are multiplied with or added to: at 0.1 they would hardly show.
    return {
        k: v * np.float32(10) if "lambda1" in k or "position" in k or "cls" in k else v
        for k, v in weights.items()
    }


KL_CONFIGS = {
    # As Stable Diffusion's, narrow.
    "kl4": {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [32, 64],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "layers_per_block": 2,
        "latent_channels": 4,
        "norm_num_groups": 8,
    },
    # As Stable Diffusion 3's and FLUX.1's, narrow.
    "kl16": {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [16, 32, 32],
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "layers_per_block": 1,
        "latent_channels": 16,
        "norm_num_groups": 8,
        "scaling_factor": 1.5305,
        "shift_factor": 0.0609,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
    # Without attention.
    "kl_convolutional": {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [8, 16],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "norm_num_groups": 8,
        "mid_block_add_attention": False,
    },
}
KL_IMAGES = (2, 16, 24, 3)
TINY_IMAGES = (2, 32, 48, 3)

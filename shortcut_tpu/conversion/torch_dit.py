"""Reads weights of facebookresearch/DiT and willisma/SiT, which share one network.

Both are read as state dicts that `torch.save` wrote; the names of their tensors are the same. What
the network has beside what ours needs is left out: the learned variance, which only ancestral
sampling uses. What ours has beside theirs adds nothing: they know no step size.

| | DiT | SiT |
|---|---|---|
| predicts | noise, k = 0 .. 999 from data to noise | x_1 - x_0, t = 0 .. 1 from noise to data |
| objective | `diffusion`, its DDIM | `flow_matching`, Euler |
| t in the sinusoids | k = 999 - 1000 t | t, as in a faithful model |
| logits | 1/sqrt(head_dim), as ours | the same: the queries take up a faithful model's 1/head_dim |

SiT counts only with its linear path and velocity prediction, the published ones.

Usage:
  weights = read_torch_archive("DiT-XL-2-256x256.pt")
  params = torch_dit_params(path, weights, model, "dit")
"""

from collections.abc import Mapping
import os
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from data_pipeline.autoencoders.weights import fitted
from data_pipeline.errors import UserError
from shortcut_tpu.conversion.foreign import (
    Layer,
    Tensors,
    assemble,
    attention_out,
    linear,
    reversed_time,
    stack,
)
from shortcut_tpu.models import DiT, Params
from shortcut_tpu.models.dit import DiTConfig
from shortcut_tpu.models.embeddings import SINUSOID_CHANNELS, sincos_2d

_LAST_TIMESTEP = 999

# Heads by width and depth: S, B, L and XL of both repositories, which no tensor's shape tells.
_HEADS = {(384, 12): 6, (768, 12): 12, (1024, 24): 16, (1152, 28): 16}
# What SiT's training must have been told; the others' samplers are not ours.
_SIT = {"path_type": "Linear", "prediction": "velocity"}


def torch_dit_facts(
    path: str | os.PathLike[str], weights: Tensors, num_classes: int | None = None
) -> dict[str, Any]:
    """Keys of the config that the weights tell.

    Args:
      path: where they are from, for messages.
      weights: by torch's name.
      num_classes: of the config. Where the label table has as many rows it has none for no label,
        as a network has that was trained without label dropout.

    Raises:
      UserError: the weights are of another network.
    """
    try:
        width, channels, patch, _ = weights["x_embedder.proj.weight"].shape
        hidden = weights["blocks.0.mlp.fc1.weight"].shape[0]
        rows = weights["y_embedder.embedding_table.weight"].shape[0]
        side = round(weights["pos_embed"].shape[1] ** 0.5)
    except (IndexError, KeyError, ValueError) as error:
        raise UserError(f"{path}: not a state dict of DiT or SiT: {error}") from None
    depth = sum(name.endswith("mlp.fc1.weight") for name in weights)
    heads = _HEADS.get((width, depth))
    return {
        "model.width": width,
        "model.depth": depth,
        **({"model.num_heads": heads} if heads else {}),
        "model.patch_size": patch,
        "model.mlp_ratio": hidden / width,
        "data.image_size": side * patch,
        "data.channels": channels,
        "data.num_classes": rows if rows == num_classes else rows - 1,
    }


def check_arguments(path: str | os.PathLike[str], kind: str, arguments: Mapping[str, Any]) -> None:
    """Raises a UserError where a training was told what no sampler of ours continues."""
    for name, expected in _SIT.items() if kind == "sit" else ():
        if arguments.get(name, expected) != expected:
            raise UserError(
                f"{path}: trained with {name}={arguments[name]!s:.40}; only {expected} is read"
            )


def configure_dit(config: ConfigDict) -> None:
    """Makes a config one that samples DiT's weights."""
    config.model.faithful = False
    config.objective.name = "diffusion"
    config.objective.diffusion.update(diffusion_steps=1000, beta_first=1e-4, beta_last=0.02)


def configure_sit(config: ConfigDict) -> None:
    """Makes a config one that samples SiT's weights."""
    config.model.faithful = True
    config.objective.name = "flow_matching"


def _shapes(config: DiTConfig, outputs: int, rows: int) -> dict[str, tuple[int, ...]]:
    width, patch, hidden = config.width, config.patch_size, int(config.width * config.mlp_ratio)
    layers: dict[str, tuple[int, ...]] = {
        "x_embedder.proj": (width, config.channels, patch, patch),
        "t_embedder.mlp.0": (width, SINUSOID_CHANNELS),
        "t_embedder.mlp.2": (width, width),
        "final_layer.linear": (outputs, width),
        "final_layer.adaLN_modulation.1": (2 * width, width),
    }
    for index in range(config.depth):
        block = f"blocks.{index}"
        layers[f"{block}.attn.qkv"] = (3 * width, width)
        layers[f"{block}.attn.proj"] = (width, width)
        layers[f"{block}.mlp.fc1"] = (hidden, width)
        layers[f"{block}.mlp.fc2"] = (width, hidden)
        layers[f"{block}.adaLN_modulation.1"] = (6 * width, width)
    shapes: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, config.num_patches, width),
        "y_embedder.embedding_table.weight": (rows, width),
    }
    for name, shape in layers.items():
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]
    return shapes


def has_null_label(weights: Tensors, num_classes: int) -> bool:
    """Whether the label table has a row for no label."""
    table = weights.get("y_embedder.embedding_table.weight")
    return table is None or len(table) != num_classes


def _with_null(table: np.ndarray, has_null: bool) -> np.ndarray:
    """A table [classes + 1, D]; the mean stands for a missing row of no label."""
    return table if has_null else np.concatenate([table, table.mean(0, keepdims=True)])


def torch_dit_params(
    path: str | os.PathLike[str], weights: Tensors, model: DiT, kind: str
) -> Params:
    """Our parameters of a state dict.

    Args:
      path: where it is from, for messages.
      weights: by torch's name.
      model: as `configure_dit` or `configure_sit` wants it.
      kind: dit or sit.

    Raises:
      UserError: names the first tensor that is missing, of another shape, or too many; or the
        positions are not sines and cosines.
    """
    config = model.config
    width, heads, channels = config.width, config.num_heads, config.channels
    outputs = config.patch_size**2 * channels
    # With a learned variance there are twice as many.
    final = weights.get("final_layer.linear.bias", np.zeros(0))
    learned = len(final) == 2 * outputs
    has_null = has_null_label(weights, config.num_classes)
    rows = config.num_classes + has_null
    used = fitted(path, weights, _shapes(config, (1 + learned) * outputs, rows))
    side = config.image_size // config.patch_size
    # In half precision they are rounded.
    tolerance = max(1e-4, float(jnp.finfo(weights["pos_embed"].dtype).eps))
    if np.abs(used["pos_embed"][0] - sincos_2d(width, side)).max() > tolerance:
        raise UserError(f"{path}: pos_embed is not of sines and cosines, which the network fixes")

    def layer(name: str, *shape: int) -> Layer:
        kernel, bias = used[f"{name}.weight"].T, used[f"{name}.bias"]
        return linear(kernel, bias, *(shape or bias.shape))

    def qkv(name: str) -> Layer:
        whole = layer(name, 3, heads, width // heads)
        if not config.faithful:
            return whole
        # A faithful model divides the logits by head_dim, these networks by its root.
        factors = np.array([np.sqrt(width / heads), 1, 1])[:, None, None]
        return {part: array * factors for part, array in whole.items()}

    def block(name: str) -> Mapping[str, Layer]:
        return {
            "modulation": layer(f"{name}.adaLN_modulation.1", 6, width),
            "qkv": qkv(f"{name}.attn.qkv"),
            "attention_out": attention_out(layer(f"{name}.attn.proj"), heads),
            "mlp_in": layer(f"{name}.mlp.fc1"),
            "mlp_out": layer(f"{name}.mlp.fc2"),
        }

    time_hidden, time_out = layer("t_embedder.mlp.0"), layer("t_embedder.mlp.2")
    if kind == "dit":
        time_hidden["kernel"] = reversed_time(time_hidden["kernel"], _LAST_TIMESTEP)
    project = layer("final_layer.linear", config.patch_size**2, -1)
    project = {
        name: array[..., :channels].reshape(*array.shape[:-2], outputs)
        for name, array in project.items()
    }
    patches = used["x_embedder.proj.weight"].transpose(2, 3, 1, 0).reshape(-1, width)
    top: dict[str, Any] = {
        "patch_embed": linear(patches, used["x_embedder.proj.bias"], width),
        "time_embed": {"hidden": time_hidden, "out": time_out},
        "step_embed": {
            "hidden": {name: np.zeros_like(array) for name, array in time_hidden.items()},
            "out": {name: np.zeros_like(array) for name, array in time_out.items()},
        },
        "label_embed": {
            "embedding": _with_null(used["y_embedder.embedding_table.weight"], has_null)
        },
        "final": {
            "modulation": layer("final_layer.adaLN_modulation.1", 2, width),
            "project": project,
        },
    }
    blocks = stack([dict(block(f"blocks.{i}")) for i in range(config.depth)])
    return assemble(model, top | {"blocks": blocks})

"""Checkpoints of MeanFlow's official code (github.com/Gsunshine/meanflow).

Its network is a DiT that is told the time and the step size. It counts time from data, 0, to noise,
1, and its velocities point to the noise: the first layer of the time's embedding is rotated, the
last layer negated.

Usage:
  step, weights, average = read_linen("DIR")
  params = meanflow_params("DIR", weights, model)
"""

import functools
import os
from typing import Any

from ml_collections import ConfigDict

from data_pipeline.autoencoders.weights import fitted
from shortcut_tpu.conversion.foreign import (
    Layer,
    Tensors,
    assemble,
    attention_out,
    linen_dit_facts,
    linen_layer,
    linen_shapes,
    reversed_time,
    stack,
)
from shortcut_tpu.models import DiT, Params
from shortcut_tpu.models.dit import DiTConfig
from shortcut_tpu.models.embeddings import SINUSOID_CHANNELS

# Heads and side of the latents by width and depth of its S, B, M, L and XL.
_PUBLISHED = {
    (384, 12): (6, 32),
    (768, 12): (12, 32),
    (1024, 16): (16, 32),
    (1024, 24): (16, 32),
    (1152, 28): (16, 32),
}


def meanflow_facts(path: str | os.PathLike[str], weights: Tensors) -> dict[str, Any]:
    """Keys of the config that the weights tell.

    Raises:
      UserError: the weights are of another network.
    """
    return linen_dit_facts(
        path,
        weights,
        patches="x_embedder/proj/kernel",
        hidden="blocks/layers_0/mlp/fc1/kernel",
        labels="y_embedder/embedding_table/embedding",
        published=_PUBLISHED,
        of="MeanFlow",
    )


def configure_meanflow(config: ConfigDict) -> None:
    """Makes a config one that samples its weights; guidance is in them."""
    config.model.faithful = False
    config.objective.name = "meanflow"
    config.evaluation.guidance = "1"


def _shapes(config: DiTConfig) -> dict[str, tuple[int, ...]]:
    width, patch, hidden = config.width, config.patch_size, int(config.width * config.mlp_ratio)
    layers: dict[str, tuple[int, ...]] = {
        "x_embedder/proj": (patch, patch, config.channels, width),
        "final_layer/adaLN_modulation/layers_1": (width, 2 * width),
        "final_layer/linear": (width, patch * patch * config.channels),
    }
    for name in ("t_embedder", "h_embedder"):
        layers[f"{name}/mlp/layers_0"] = (SINUSOID_CHANNELS, width)
        layers[f"{name}/mlp/layers_2"] = (width, width)
    for index in range(config.depth):
        block = f"blocks/layers_{index}"
        layers[f"{block}/adaLN_modulation/layers_1"] = (width, 6 * width)
        layers[f"{block}/attn/qkv"] = (width, 3 * width)
        layers[f"{block}/attn/proj"] = (width, width)
        layers[f"{block}/mlp/fc1"] = (width, hidden)
        layers[f"{block}/mlp/fc2"] = (hidden, width)
    labels = {"y_embedder/embedding_table/embedding": (config.num_classes + 1, width)}
    return labels | linen_shapes(layers)


def meanflow_params(path: str | os.PathLike[str], weights: Tensors, model: DiT) -> Params:
    """Our parameters of the official weights.

    Args:
      path: where they are from, for messages.
      weights: by official name.
      model: of the objective `meanflow`.

    Raises:
      UserError: names the first tensor that is missing, of another shape, or too many.
    """
    config = model.config
    width, heads = config.width, config.num_heads
    used = fitted(path, weights, _shapes(config))

    layer = functools.partial(linen_layer, used)

    def block(name: str) -> dict[str, Layer]:
        return {
            "modulation": layer(f"{name}/adaLN_modulation/layers_1", 6, width),
            "qkv": layer(f"{name}/attn/qkv", 3, heads, width // heads),
            "attention_out": attention_out(layer(f"{name}/attn/proj"), heads),
            "mlp_in": layer(f"{name}/mlp/fc1"),
            "mlp_out": layer(f"{name}/mlp/fc2"),
        }

    def embedder(name: str) -> dict[str, Layer]:
        return {"hidden": layer(f"{name}/mlp/layers_0"), "out": layer(f"{name}/mlp/layers_2")}

    time = embedder("t_embedder")
    time["hidden"]["kernel"] = reversed_time(time["hidden"]["kernel"], 1)
    project = {key: -array for key, array in layer("final_layer/linear").items()}
    top: dict[str, Any] = {
        "patch_embed": layer("x_embedder/proj"),
        "time_embed": time,
        "step_embed": embedder("h_embedder"),
        "label_embed": {"embedding": used["y_embedder/embedding_table/embedding"]},
        "final": {
            "modulation": layer("final_layer/adaLN_modulation/layers_1", 2, width),
            "project": project,
        },
    }
    blocks = stack([block(f"blocks/layers_{i}") for i in range(config.depth)])
    return assemble(model, top | {"blocks": blocks})

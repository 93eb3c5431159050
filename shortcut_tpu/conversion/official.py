"""Reads checkpoints of the official code (github.com/kvfrans/shortcut-models).

They are pickles of a Flax linen tree: `params`, `params_ema`, `opt_state` and `step`, under
`train_state`. A `faithful` model computes what that network computes.

Usage:
  step, weights, average = read_official(path)
  params = official_params(path, weights, model)
"""

import functools
import os
from typing import Any

from ml_collections import ConfigDict

from data_pipeline.autoencoders.weights import fitted
from data_pipeline.errors import UserError
from data_pipeline.pickles import read_pickle
from shortcut_tpu.conversion.foreign import (
    Layer,
    Tensors,
    assemble,
    attention,
    attention_out,
    flat,
    linen_dit_facts,
    linen_layer,
    linen_shapes,
    stack,
)
from shortcut_tpu.models import DiT, Params
from shortcut_tpu.models.dit import DiTConfig
from shortcut_tpu.models.embeddings import SINUSOID_CHANNELS

# Heads of the published networks by width and depth, and the side of their latents: positions are
# computed and not stored, so no tensor's shape tells either.
_PUBLISHED = {(768, 12): (12, 32), (1152, 28): (16, 32)}

# Predicts a loss variance that the official loss does not use.
_UNUSED = "Embed_0/embedding"


def read_official(path: str | os.PathLike[str]) -> tuple[int, Tensors, Tensors]:
    """The step, the weights and their average, by name with "/" between modules.

    Raises:
      UserError: the file cannot be read or is no such checkpoint.
    """
    content = read_pickle(path)
    try:
        state = content["train_state"]
        return int(state["step"]), flat(state["params"]), flat(state["params_ema"])
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(
            f"{path}: not a checkpoint of shortcut-models, which holds step, params and params_ema "
            "under train_state"
        ) from None


def official_facts(path: str | os.PathLike[str], weights: Tensors) -> dict[str, Any]:
    """Keys of the config that the weights tell.

    Raises:
      UserError: the weights are of another network.
    """
    return linen_dit_facts(
        path,
        weights,
        patches="PatchEmbed_0/Conv_0/kernel",
        hidden="DiTBlock_0/MlpBlock_0/Dense_0/kernel",
        labels="LabelEmbedder_0/Embed_0/embedding",
        published=_PUBLISHED,
        of="shortcut-models",
    )


def configure_official(config: ConfigDict) -> None:
    """Makes a config the official network's."""
    config.model.faithful = True


def _shapes(config: DiTConfig) -> dict[str, tuple[int, ...]]:
    width, patch, hidden = config.width, config.patch_size, int(config.width * config.mlp_ratio)
    layers: dict[str, tuple[int, ...]] = {
        "PatchEmbed_0/Conv_0": (patch, patch, config.channels, width),
        "FinalLayer_0/Dense_0": (width, 2 * width),
        "FinalLayer_0/Dense_1": (width, patch * patch * config.channels),
    }
    for index in range(2):
        layers[f"TimestepEmbedder_{index}/Dense_0"] = (SINUSOID_CHANNELS, width)
        layers[f"TimestepEmbedder_{index}/Dense_1"] = (width, width)
    for index in range(config.depth):
        block = f"DiTBlock_{index}"
        layers[f"{block}/Dense_0"] = (width, 6 * width)
        for dense in range(1, 5):
            layers[f"{block}/Dense_{dense}"] = (width, width)
        layers[f"{block}/MlpBlock_0/Dense_0"] = (width, hidden)
        layers[f"{block}/MlpBlock_0/Dense_1"] = (hidden, width)
    labels = {"LabelEmbedder_0/Embed_0/embedding": (config.num_classes + 1, width)}
    return labels | linen_shapes(layers)


def official_params(path: str | os.PathLike[str], weights: Tensors, model: DiT) -> Params:
    """Our parameters of the official weights.

    Args:
      path: where they are from, for messages.
      weights: by official name.
      model: a faithful one.

    Raises:
      UserError: names the first tensor that is missing, of another shape, or too many.
    """
    config = model.config
    width, heads = config.width, config.num_heads
    used = {name: tensor for name, tensor in weights.items() if name != _UNUSED}
    used = fitted(path, used, _shapes(config))

    layer = functools.partial(linen_layer, used)

    def block(name: str) -> dict[str, Layer]:
        key, query, value = (layer(f"{name}/Dense_{index}") for index in (1, 2, 3))
        return {
            "modulation": layer(f"{name}/Dense_0", 6, width),
            "qkv": attention(query, key, value, heads),
            "attention_out": attention_out(layer(f"{name}/Dense_4"), heads),
            "mlp_in": layer(f"{name}/MlpBlock_0/Dense_0"),
            "mlp_out": layer(f"{name}/MlpBlock_0/Dense_1"),
        }

    top: dict[str, Any] = {
        "patch_embed": layer("PatchEmbed_0/Conv_0"),
        "label_embed": {"embedding": used["LabelEmbedder_0/Embed_0/embedding"]},
        "final": {
            "modulation": layer("FinalLayer_0/Dense_0", 2, width),
            "project": layer("FinalLayer_0/Dense_1"),
        },
    }
    for index, name in enumerate(("time_embed", "step_embed")):
        official = f"TimestepEmbedder_{index}"
        top[name] = {"hidden": layer(f"{official}/Dense_0"), "out": layer(f"{official}/Dense_1")}
    blocks = stack([block(f"DiTBlock_{i}") for i in range(config.depth)])
    return assemble(model, top | {"blocks": blocks})

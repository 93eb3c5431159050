"""Checkpoints of improved MeanFlow's official code (github.com/Lyy-iiis/imeanflow).

Its network is `in_context`. It counts time from data, 0, to noise, 1, and its velocities point to
the noise: the first layers of the embeddings of an interval's ends are rotated and change places,
the last layers are negated. What is published to be sampled from has no blocks of the second
output, which only training needs: those of the first, the same function at a step of 0, stand in.

Usage:
  step, weights, average = read_linen("iMF-B-2")
  params = imf_params("iMF-B-2", weights, model)
"""

import functools
import os
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from data_pipeline.autoencoders.weights import fitted
from data_pipeline.errors import UserError
from shortcut_tpu.conversion.foreign import Tensors, assemble, linen_layer, reversed_time, stack
from shortcut_tpu.models import InContext, Params
from shortcut_tpu.models.embeddings import SINUSOID_CHANNELS
from shortcut_tpu.models.in_context import InContextConfig

# By our name of a condition: theirs of its tokens and of its embedding.
_CONDITIONS = {
    "guidance": ("omega_tokens", "omega_embedder"),
    "guidance_end": ("t_min_tokens", "cfg_t_start_embedder"),
    "guidance_start": ("t_max_tokens", "cfg_t_end_embedder"),
    "step": ("time_tokens", "h_embedder"),
}
_REVERSED = ("guidance_start", "guidance_end")
# Width and depth of its B, M, L and XL, whose latents are of this side: positions are computed and
# not stored, so no tensor's shape tells.
_PUBLISHED = ((768, 12), (768, 24), (1024, 32), (1024, 48))
_SIDE = 32
# Mean and standard deviation of their latents, ImageNet's under sd-vae-ft-mse, by channel.
_MEAN = (0.86488, -0.27787343, 0.21616915, 0.3738409)
_STD = (4.85503674, 5.31922414, 3.93725398, 3.9870003)


def configure_imf(config: ConfigDict) -> None:
    """Makes a config one that samples its weights; guidance is told to the network."""
    config.model.faithful = False
    config.model.network = "in_context"
    config.objective.name = "improved_meanflow"
    config.evaluation.guidance = "1"
    config.data.standardize = True
    if not config.data.latent_std and config.data.channels == len(_STD):
        config.data.update({"latent_mean": _MEAN, "latent_std": _STD})


def has_v_blocks(weights: Tensors) -> bool:
    """Whether the blocks of the second output are there."""
    return any(name.startswith("v_heads_") for name in weights)


def imf_facts(path: str | os.PathLike[str], weights: Tensors) -> dict[str, Any]:
    """Keys of the config that the weights tell.

    Raises:
      UserError: the weights are of another network.
    """
    try:
        patch, _, channels, width = weights["x_embedder/proj/kernel"].shape
        hidden = weights["u_heads_0/mlp/w1/kernel"].shape[1]
        head_dim = weights["u_heads_0/attn/q_norm/kernel"].shape[0]
        rows = weights["y_embedder/embedding_table/embedding"].shape[0]
    except (IndexError, KeyError, ValueError) as error:
        raise UserError(f"{path}: not the network of improved MeanFlow: {error}") from None
    shared, own = (
        sum(name.startswith(stack) and name.endswith("/norm1/kernel") for name in weights)
        for stack in ("shared_blocks_", "u_heads_")
    )
    facts: dict[str, Any] = {
        "model.width": width,
        "model.depth": shared + own,
        "model.num_heads": width // head_dim,
        "model.patch_size": patch,
        # The hidden width is a whole number, the ratio need not be.
        "model.mlp_ratio": 8 / 3 if int(width * 8 / 3) == hidden else hidden / width,
        "model.in_context.aux_head_depth": own,
        "model.in_context.rotary": "sequence",
        "data.channels": channels,
        "data.num_classes": rows - 1,
    }
    return facts | ({"data.image_size": _SIDE} if (width, shared + own) in _PUBLISHED else {})


def _shapes(config: InContextConfig, with_v: bool) -> dict[str, tuple[int, ...]]:
    width, patch, hidden = config.width, config.patch_size, int(config.width * config.mlp_ratio)
    own, outputs = config.aux_head_depth, patch * patch * config.channels
    shapes: dict[str, tuple[int, ...]] = {
        "x_embedder/proj/kernel": (patch, patch, config.channels, width),
        "x_embedder/proj/bias": (width,),
        "y_embedder/embedding_table/embedding": (config.num_classes + 1, width),
        "class_tokens": (config.token_counts["label"], width),
    }
    for name, (tokens, embedder) in _CONDITIONS.items():
        shapes[tokens] = (config.token_counts[name], width)
        for layer, inputs in (("layers_0", SINUSOID_CHANNELS), ("layers_2", width)):
            shapes[f"{embedder}/mlp/{layer}/kernel"] = (inputs, width)
            shapes[f"{embedder}/mlp/{layer}/bias"] = (width,)
    stacks = {"shared_blocks": config.shared_depth, "u_heads": own}
    for block in _blocks(stacks | ({"v_heads": own} if with_v else {})):
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes[f"{block}/attn/{projection}/kernel"] = (width, width)
        for norm in ("q_norm", "k_norm"):
            shapes[f"{block}/attn/{norm}/kernel"] = (width // config.num_heads,)
        for vector in ("norm1/kernel", "norm2/kernel", "attn_scale", "mlp_scale"):
            shapes[f"{block}/{vector}"] = (width,)
        for gate in ("w1", "w3"):
            shapes[f"{block}/mlp/{gate}/kernel"] = (width, hidden)
        shapes[f"{block}/mlp/w2/kernel"] = (hidden, width)
    for output in "uv":
        shapes[f"{output}_final_layer/norm/kernel"] = (width,)
        shapes[f"{output}_final_layer/linear/kernel"] = (width, outputs)
        shapes[f"{output}_final_layer/linear/bias"] = (outputs,)
    return shapes


def _blocks(stacks: dict[str, int]) -> list[str]:
    return [f"{name}_{index}" for name, depth in stacks.items() for index in range(depth)]


def imf_params(path: str | os.PathLike[str], weights: Tensors, model: InContext) -> Params:
    """Our parameters of the official weights.

    Args:
      path: where they are from, for messages.
      weights: by official name.
      model: of the objective `improved_meanflow`.

    Raises:
      UserError: names the first tensor that is missing, of another shape, or too many.
    """
    config, with_v = model.config, has_v_blocks(weights)
    width, heads, own = config.width, config.num_heads, config.aux_head_depth
    used = fitted(path, weights, _shapes(config, with_v))

    layer = functools.partial(linen_layer, used)

    def kernel(name: str, *shape: int) -> dict[str, Any]:
        return {"kernel": used[f"{name}/kernel"].reshape(shape)}

    def norm(name: str) -> dict[str, Any]:
        return {"scale": used[f"{name}/kernel"]}

    def embedder(condition: str) -> dict[str, Any]:
        name = _CONDITIONS[condition][1]
        hidden, out = layer(f"{name}/mlp/layers_0"), layer(f"{name}/mlp/layers_2")
        if condition in _REVERSED:
            hidden["kernel"] = reversed_time(hidden["kernel"], 1)
        return {"hidden": hidden, "out": out}

    def together(name: str, parts: tuple[str, ...], *shape: int) -> dict[str, Any]:
        """Layers side by side, [width, parts, ...]."""
        each = [used[f"{name}/{part}/kernel"].reshape(width, *shape) for part in parts]
        return {"kernel": np.stack(each, axis=1)}

    def block(name: str) -> dict[str, Any]:
        attention, mlp, head_dim = f"{name}/attn", f"{name}/mlp", width // heads
        return {
            "attention_norm": norm(f"{name}/norm1"),
            "mlp_norm": norm(f"{name}/norm2"),
            "query_norm": norm(f"{attention}/q_norm"),
            "key_norm": norm(f"{attention}/k_norm"),
            "qkv": together(attention, ("q_proj", "k_proj", "v_proj"), heads, head_dim),
            "attention_out": kernel(f"{attention}/out_proj", heads, head_dim, width),
            "gate_up": together(mlp, ("w1", "w3"), int(width * config.mlp_ratio)),
            "down": kernel(f"{mlp}/w2", -1, width),
            "attention_scale": used[f"{name}/attn_scale"],
            "mlp_scale": used[f"{name}/mlp_scale"],
        }

    def head(name: str) -> dict[str, Any]:
        last = {key: -array for key, array in layer(f"{name}_final_layer/linear").items()}
        blocks = {"blocks": stack([block(b) for b in _blocks({f"{name}_heads": own})])}
        return {"norm": norm(f"{name}_final_layer/norm"), "project": last} | blocks

    tokens = {name: used[theirs] for name, (theirs, _) in _CONDITIONS.items()}
    shared = [block(b) for b in _blocks({"shared_blocks": config.shared_depth})]
    return assemble(
        model,
        {
            "patch_embed": layer("x_embedder/proj"),
            "label_embed": {"embedding": used["y_embedder/embedding_table/embedding"]},
            "scalar_embed": {name: embedder(name) for name in _CONDITIONS},
            "tokens": tokens | {"label": used["class_tokens"]},
            "heads": {"head_0": head("u"), "head_1": head("v" if with_v else "u")},
            **({"shared_blocks": stack(shared)} if shared else {}),
        },
    )

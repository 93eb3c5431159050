"""Shared by the readers of foreign weights: checks against the config, and our parameter tree.

Usage:
  require(path, config, {"model.width": 768, "data.num_classes": 1000})
  params = assemble(model, parts | {"blocks": stack(blocks)})
"""

from collections.abc import Mapping, Sequence
import functools
import operator
import os
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from data_pipeline.errors import UserError
from shortcut_tpu.models import Model, Params
from shortcut_tpu.models.embeddings import MAX_PERIOD

Tensors = Mapping[str, np.ndarray]
Layer = dict[str, np.ndarray]


def require(
    path: str | os.PathLike[str],
    config: ConfigDict,
    facts: Mapping[str, Any],
    asked: Sequence[str] = (),
) -> None:
    """Compares the config with what the weights tell.

    Args:
      path: where they are from.
      config: what it is to be.
      facts: keys of the config, and what the weights say of them.
      asked: keys that nothing tells, and that no one has named.

    Raises:
      UserError: they differ; the message holds the overrides that mend it.
    """
    wrong = []
    for key, found in facts.items():
        if functools.reduce(operator.getitem, key.split("."), config) != found:
            wrong.append(f"--config.{key}={found}")
    wrong += [f"--config.{key}=N" for key in asked]
    if wrong:
        untold = "; N as they were trained with, for nothing in them tells it" if asked else ""
        raise UserError(
            f"{path}: the weights are not of this config; give {' '.join(wrong)}{untold}"
        )


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    """A tree's arrays by name, "/" between its levels."""
    named: dict[str, np.ndarray] = {}
    for name, value in tree.items():
        if isinstance(value, np.ndarray):
            named[f"{prefix}{name}"] = value
        else:
            named |= flat(value, f"{prefix}{name}/")
    return named


def linen_shapes(layers: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays of flax.linen layers, of whose kernels these are the shapes."""
    shapes = {}
    for name, shape in layers.items():
        shapes[f"{name}/kernel"], shapes[f"{name}/bias"] = shape, shape[-1:]
    return shapes


def linen_layer(weights: Tensors, name: str, *shape: int) -> Layer:
    """A layer of flax.linen, its inputs on one axis and its outputs laid out in `shape`, if any."""
    kernel, bias = weights[f"{name}/kernel"], weights[f"{name}/bias"]
    return linear(kernel.reshape(-1, bias.size), bias, *(shape or bias.shape))


def linen_dit_facts(
    path: str | os.PathLike[str],
    weights: Tensors,
    *,
    patches: str,
    hidden: str,
    labels: str,
    published: Mapping[tuple[int, int], tuple[int, int]],
    of: str,
) -> dict[str, Any]:
    """Keys of the config that the weights of a DiT in flax.linen tell.

    Args:
      path: where they are from.
      weights: by name.
      patches: name of the patches' kernel [patch, patch, channels, width].
      hidden: name of the first block's first MLP kernel, which has a 0 for the block's number.
      labels: name of the label table, one row of which is for no label.
      published: heads and side of the latents, which no shape tells, by width and depth.
      of: whose network it would be.

    Raises:
      UserError: the weights are of another network.
    """
    try:
        patch, _, channels, width = weights[patches].shape
        mlp_ratio = weights[hidden].shape[1] / width
        rows = weights[labels].shape[0]
    except (IndexError, KeyError, ValueError) as error:
        raise UserError(f"{path}: not the network of {of}: {error}") from None
    depth = sum(name.endswith(hidden.partition("0/")[2]) for name in weights)
    facts: dict[str, Any] = {
        "model.width": width,
        "model.depth": depth,
        "model.patch_size": patch,
        "model.mlp_ratio": mlp_ratio,
        "data.channels": channels,
        "data.num_classes": rows - 1,
    }
    if (width, depth) in published:
        facts["model.num_heads"], facts["data.image_size"] = published[width, depth]
    return facts


def reversed_time(kernel: np.ndarray, last: int) -> np.ndarray:
    """A kernel [256, D] of the sinusoids of k as one of those of s = last - k.

    cos w(last - s) = cos(w last) cos(ws) + sin(w last) sin(ws), and the sine likewise: the features
    of k are a rotation of those of s, which the kernel takes up.
    """
    half = len(kernel) // 2
    frequencies = np.exp(-np.log(MAX_PERIOD) * np.arange(half) / half)
    cos, sin = (f(frequencies * last)[:, None] for f in (np.cos, np.sin))
    of_cos, of_sin = kernel[:half].astype(np.float64), kernel[half:].astype(np.float64)
    return np.concatenate([cos * of_cos + sin * of_sin, sin * of_cos - cos * of_sin])


def linear(kernel: np.ndarray, bias: np.ndarray, *shape: int) -> Layer:
    """A layer of kernel [inputs, outputs] and bias, its outputs laid out in `shape`."""
    return {"kernel": kernel.reshape(len(kernel), *shape), "bias": bias.reshape(shape)}


def attention(q: Layer, k: Layer, v: Layer, heads: int) -> Layer:
    """Query, key and value, layers of kernel [D, D], as one of [D, 3, heads, D/heads]."""
    return {
        name: np.stack([part[name] for part in (q, k, v)], axis=-2).reshape(
            *q[name].shape[:-1], 3, heads, -1
        )
        for name in ("kernel", "bias")
    }


def attention_out(layer: Layer, heads: int) -> Layer:
    """A layer that takes [heads, D/heads]."""
    kernel = layer["kernel"]
    return {"kernel": kernel.reshape(heads, -1, kernel.shape[-1]), "bias": layer["bias"]}


def stack(blocks: Sequence[Any]) -> Any:
    """Trees of one block each as one, on a leading layer axis."""
    return jax.tree.map(lambda *layers: np.stack(layers), *blocks)


def assemble(model: Model, tree: dict[str, Any]) -> Params:
    """Our parameters of a tree of arrays.

    Raises:
      ValueError: they are not the model's, which is an error of the caller.
    """
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), tree)
    expected = jax.tree.map(lambda a: a.shape, jax.eval_shape(model.init, jax.random.key(0)))
    found = jax.tree.map(lambda leaf: leaf.shape, params)
    if found != expected:
        raise ValueError(f"parameters {found} in place of {expected}")
    return params

"""Shared by the readers of foreign weights: checks against the config, and our parameter tree.

Usage:
  require(path, config, {"model.width": 768, "data.num_classes": 1000})
  params = assemble(model, parts)
"""

from collections.abc import Mapping, Sequence
import os
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from data_pipeline.errors import UserError
from shortcut_tpu.models import DiT, Params

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
        group, name = key.split(".")
        if config[group][name] != found:
            wrong.append(f"--config.{key}={found}")
    wrong += [f"--config.{key}=N" for key in asked]
    if wrong:
        untold = "; N as they were trained with, for nothing in them tells it" if asked else ""
        raise UserError(
            f"{path}: the weights are not of this config; give {' '.join(wrong)}{untold}"
        )


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


def assemble(model: DiT, top: dict[str, Any], blocks: list[dict[str, Layer]]) -> Params:
    """Our parameters: the layers by name, and the blocks stacked.

    Raises:
      ValueError: they are not the model's, which is an error of the caller.
    """
    params = top | {"blocks": jax.tree.map(lambda *layers: np.stack(layers), *blocks)}
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)
    expected = jax.tree.map(lambda a: a.shape, jax.eval_shape(model.init, jax.random.key(0)))
    found = jax.tree.map(lambda leaf: leaf.shape, params)
    if found != expected:
        raise ValueError(f"parameters {found} in place of {expected}")
    return params

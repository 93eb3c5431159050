"""Writes and reads weights as `.safetensors` with a card in JSON.

The tensors have the names of our tree, "." between its levels, and its shapes: kernels are [inputs,
..., outputs], the blocks' stacked on a leading layer axis. The card says what else a reader needs:
the config, the factor of the latents, the direction of time.

Usage:
  write_tensors("weights.safetensors", run.params, card(run, "evaluation"))
  config, step, params = read_tensors("weights.safetensors")
"""

from collections.abc import Mapping
import json
from typing import Any

from etils import epath
import jax
from ml_collections import ConfigDict
import numpy as np
import safetensors.numpy

from data_pipeline.atomic_files import write_json, write_output
from data_pipeline.autoencoders.weights import fitted, read_safetensors
from data_pipeline.errors import UserError
from data_pipeline.system_errors import unreadable
from shortcut_tpu.models import Params
from shortcut_tpu.runs.loading import Run
from shortcut_tpu.training.experiment import Experiment

FORMAT = "shortcut_tpu-weights-1"


def named(params: Params, separator: str = ".") -> dict[str, np.ndarray]:
    """A tree's arrays by name."""
    return {
        separator.join(key.key for key in path): np.asarray(leaf)
        for path, leaf in jax.tree.leaves_with_path(params)
    }


def nested(arrays: Mapping[str, Any], separator: str = ".") -> Params:
    """The tree of arrays by name."""
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *path, last = name.split(separator)
        level = tree
        for part in path:
            level = level.setdefault(part, {})
        level[last] = array
    return tree


def card(run: Run, ema: str) -> dict[str, Any]:
    """What a reader of the weights must know beside them."""
    config = run.experiment.config
    return {
        "format": FORMAT,
        "step": run.step,
        "average": ema,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(run.params)),
        "objective": config.objective.name,
        "inputs": "x [B, H, W, C], t [B] from 0, noise, to 1, data, d [B], labels [B]",
        "latent_shape": list(run.experiment.latent_shape),
        # Of the model's latents, (stored - shift) * scale: a number for all channels, or one each.
        "latent_shift": list(run.experiment.scaling.shift),
        "latent_scale": list(run.experiment.scaling.scale),
        "autoencoder": {"name": run.autoencoder.name, "digest": run.autoencoder.digest},
        "config": config.to_dict(),
    }


def write_tensors(output: epath.Path, params: Params, card: Mapping[str, Any]) -> epath.Path:
    """Writes the weights and, beside them, their card; returns the card's path.

    Raises:
      UserError: a file cannot be written.
    """
    content = safetensors.numpy.save(named(params), metadata={"format": FORMAT})
    beside = output.with_suffix(".json")
    write_output(output, content)
    write_json(beside, card)
    return beside


def read_tensors(path: epath.Path) -> tuple[ConfigDict, int, Params]:
    """The config, the step and the weights of such files.

    Raises:
      UserError: one is missing, damaged, or they do not belong together.
    """
    beside = path.with_suffix(".json")
    try:
        card = json.loads(beside.read_text())
        if card["format"] != FORMAT:
            raise ValueError(f"its format is {card['format']!r}")
        config, step = ConfigDict(card["config"]).lock(), int(card["step"])
    except OSError as error:
        raise unreadable(beside, error) from None
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{beside}: not a card of our weights: {error}") from None
    tensors, _ = read_safetensors(path)
    abstract = Experiment.from_config(config, jax.devices()).abstract_state.params
    shapes = {
        ".".join(key.key for key in names): leaf.shape
        for names, leaf in jax.tree.leaves_with_path(abstract)
    }
    return config, step, nested(fitted(path, tensors, shapes))

"""Checkpoints of `flax.training.checkpoints`: a train state with an average of its weights.

They are a file `checkpoint_N` in msgpack, a folder of that name which holds such a file, or one
that Orbax wrote by tensor. All three are read as numbers by name; nothing in them is run.

Usage:
  step, weights, average = read_linen("iMF-B-2")
"""

import os
import re
from typing import Any

from etils import epath
from flax import serialization
import numpy as np
import orbax.checkpoint as ocp

from data_pipeline.errors import UserError
from data_pipeline.system_errors import raise_if_system
from shortcut_tpu.conversion.foreign import Tensors, flat

# Modules that only wrap one layer, and what holds the network.
_WRAPPERS = re.compile(r"^net/|_flax_(linear|embedding)/")


def read_linen(path: str | os.PathLike[str]) -> tuple[int, Tensors, Tensors]:
    """The step, the weights and their average, by name with "/" between modules.

    Args:
      path: a checkpoint, or a folder of checkpoints, of which the newest is taken.

    Raises:
      UserError: there is none, it cannot be read or it holds something else.
    """
    checkpoint = _newest(epath.Path(path))
    try:
        state = _restored(checkpoint)
    except Exception as error:
        raise_if_system(checkpoint, error)
        raise UserError(f"{checkpoint}: is damaged or no checkpoint of flax: {error}") from None
    try:
        return int(state["step"]), _weights(state["params"]), _weights(state["ema_params"])
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(
            f"{checkpoint}: holds no step, params and ema_params, as a train state of flax does"
        ) from None


def _newest(path: epath.Path) -> epath.Path:
    """The path, or the last `checkpoint_N` in it."""
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder")
    found = list(path.glob("checkpoint_*")) if path.is_dir() else []
    numbered = {int(p.name[11:]): p for p in found if p.name[11:].isdigit()}
    return numbered[max(numbered)] if numbered else path


def _restored(checkpoint: epath.Path) -> Any:
    file = checkpoint / "checkpoint" if checkpoint.is_dir() else checkpoint
    if file.exists():
        return serialization.msgpack_restore(file.read_bytes())
    return ocp.PyTreeCheckpointer().restore(checkpoint)


def _weights(tree: Any) -> dict[str, np.ndarray]:
    return {_WRAPPERS.sub("", name): array for name, array in flat(tree).items()}

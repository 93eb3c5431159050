"""Chooses the class of each evaluation sample, a function of the seed and its index.

Usage:
  labels = make_labels("balanced", 50_000, num_classes=1000, seed=0)
"""

import os
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.records import LatentReader
from shortcut_tpu.evaluation.protocols import Balance

# Folded into the seed's key in place of a step that no run reaches; samples have the one after.
_LABEL_STREAM = 2**32 - 2
_BATCH = 4096


def make_labels(
    balance: str,
    num_samples: int,
    *,
    num_classes: int,
    seed: int | jax.Array,
    records: str | os.PathLike[str] = "",
) -> np.ndarray:
    """[num_samples] int32; see `protocols.Protocol.balance`.

    Args:
      balance: `balanced`, `random` or `data`.
      num_samples: how many.
      num_classes: labels are 0 .. num_classes - 1.
      seed: of `random` and `data`.
      records: the folder of latent records, for `data`.

    Raises:
      UserError: the balance is unknown, or the records are not there.
    """
    if balance == "balanced":
        return balanced_labels(num_samples, num_classes)
    stream = jax.random.fold_in(jax.random.key(seed), _LABEL_STREAM)
    if balance == "random":
        keys = jax.vmap(lambda i: jax.random.fold_in(stream, i))(jnp.arange(num_samples))
        draw = jax.vmap(lambda key: jax.random.randint(key, (), 0, num_classes))
        return np.asarray(draw(keys), np.int32)
    if balance == "data":
        reader = LatentReader(records)
        order = np.asarray(jax.random.permutation(stream, len(reader)))
        wanted = order[np.arange(num_samples) % len(reader)]
        # A record is much larger than its label: all at once would be gigabytes.
        parts = (wanted[start : start + _BATCH] for start in range(0, num_samples, _BATCH))
        return np.concatenate([reader.read(part)["label"] for part in parts]).astype(np.int32)
    raise UserError(f"class balance {balance!r} is none of {', '.join(get_args(Balance))}")


def balanced_labels(num_samples: int, num_classes: int) -> np.ndarray:
    """[num_samples] int32: every class as often as any other, to within one."""
    return balanced_labels_of(np.arange(num_samples), num_classes)


def balanced_labels_of(indices: np.ndarray, num_classes: int) -> np.ndarray:
    """The labels [B] int32 of the samples with these indices [B]."""
    return (indices % num_classes).astype(np.int32)

"""Real images of given labels, to stand beside samples.

Usage:
  latents = real_latents(records, config.data, labels=[3, 7], count=4)
  images = generator.decoded(latents, batch_size)
"""

from collections.abc import Sequence
import os

import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.records import LatentReader
from shortcut_tpu.pod.distributed import from_first
from shortcut_tpu.training.experiment import latent_shape

# Records do not tell their labels before they are read, and ImageNet's are 50 GB: of a rare class
# so many evenly spread ones may hold fewer than are asked for.
_MOST_READ = 8192
_BATCH = 512


def real_latents(
    records: str | os.PathLike[str], data: ConfigDict, labels: Sequence[int], count: int
) -> np.ndarray | None:
    """Latents as they are stored [len(labels) * count, H, W, C] float32, label by label.

    The same on every host, which all must ask. Where a label has fewer, they are repeated.

    Args:
      records: the folder of latent records, on a local disk.
      data: the config's `data`; its `num_classes` as a label stands for none, and takes any record.
      labels: in 0 .. num_classes.
      count: records a label.

    Returns:
      None where the first host cannot read records of this config, or found none of a label.
    """
    latents = None
    if jax.process_index() == 0:
        latents = _read(records, data, labels, count)
    if not from_first(latents is not None):
        return None
    if latents is None:
        latents = np.zeros((len(labels) * count, *latent_shape(data)), np.float32)
    return np.asarray(multihost_utils.broadcast_one_to_all(latents))


def _read(
    records: str | os.PathLike[str], data: ConfigDict, labels: Sequence[int], count: int
) -> np.ndarray | None:
    try:
        reader = LatentReader(records)
        same = reader.manifest.autoencoder["name"] == data.autoencoder.partition(":")[0]
        if not same or reader.manifest.latent_shape != latent_shape(data):
            return None
        found: dict[int, list[np.ndarray]] = {label: [] for label in labels}
        for indices in _spread(len(reader)):
            read = reader.read(indices)
            for label, kept in found.items():
                wanted = slice(None) if label == data.num_classes else read["label"] == label
                kept.extend(read["mean"][wanted][: count - len(kept)])
            if all(len(kept) == count for kept in found.values()):
                break
    except UserError:
        return None
    if not all(found.values()):
        return None
    return np.stack(
        [found[label][i % len(found[label])] for label in labels for i in range(count)]
    ).astype(np.float32)


def _spread(num_records: int) -> list[np.ndarray]:
    """Indices of at most _MOST_READ records; each batch is from all over the folder."""
    read = min(num_records, _MOST_READ)
    batches = -(-read // _BATCH)
    indices = np.arange(read) * num_records // read
    return [indices[start::batches] for start in range(batches)]

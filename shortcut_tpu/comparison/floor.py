"""What real images would score: no number of a table below it says that a model is better.

Usage:
  floor = real_floor(config)            # 0.13, or None where there are too few records
"""

import jax
from ml_collections import ConfigDict

from data_pipeline import staging
from data_pipeline.autoencoders import load_autoencoder
from data_pipeline.manifest import Manifest
from shortcut_tpu.evaluation.distances import frechet_distance
from shortcut_tpu.evaluation.features import POOL, load_features
from shortcut_tpu.evaluation.images import one_mesh, record_sums
from shortcut_tpu.evaluation.protocols import get_protocol

# Of more records so many tell, evenly spaced.
_MOST = 20_000
_BATCH = 1024


def real_floor(config: ConfigDict) -> float | None:
    """The Frechet distance of `evaluation.num_samples` fresh real images to a run's records.

    Estimated by a half of the records against the other: the distance of n images to m others of
    the same kind goes as 1/n + 1/m ("Effectively Unbiased FID and Inception Score", arXiv
    1911.07023, section 3), which is within 6 % on the digits. A model whose samples are nearer to
    the records than that has learned the records, not what they are drawn from.

    Returns:
      None where a half has no more images than there are features: the law does not hold then.
    """
    features = load_features(get_protocol(config.evaluation.protocol), config.evaluation.features)
    autoencoder = load_autoencoder(config.data.autoencoder)
    directory = staging.local(config.data.path, config.data.stage)
    halves = [
        record_sums(
            directory,
            autoencoder,
            features,
            one_mesh(),
            batch_size=_BATCH // jax.device_count() * jax.device_count(),
            limit=_MOST,
            part=(half, 2),
            vectors=False,
        ).gaussians[POOL]
        for half in (0, 1)
    ]
    if min(half.count for half in halves) <= len(halves[0].total):
        return None
    records = Manifest.load(directory).num_records
    law = 1 / config.evaluation.num_samples + 1 / records
    return frechet_distance(*halves) * law / sum(1 / half.count for half in halves)

"""Checks what an evaluation needs of a host's memory, before anything is sampled.

A Frechet distance is between covariances, whose size is the square of the features': 2048 of
Inception's are 32 MiB, all the pixels of an image of 256x256 are 288 GiB.

Usage:
  parts = config_bytes(config, autoencoder)
  require_host_memory(config, autoencoder)
"""

from collections.abc import Mapping
import functools
import os

from ml_collections import ConfigDict

from data_pipeline.autoencoders import Autoencoder
from data_pipeline.errors import UserError
from shortcut_tpu.evaluation.evaluator import image_shape
from shortcut_tpu.evaluation.features import LOGITS, POOL, abstract_features
from shortcut_tpu.evaluation.protocols import get_protocol
from shortcut_tpu.training.experiment import latent_shape

# Matrices as large as a covariance that are there at once in `frechet_distance`, on the first host:
# both sets' own, their covariances, eigenvectors, a root and LAPACK's workspace. A test measures.
_MATRICES = 9
_DOUBLE, _SINGLE = 8, 4

_Measured = tuple[tuple[int, ...], dict[str, int], bool]


def host_bytes(
    sizes: Mapping[str, int], num_samples: int, batch_size: int, keeps_vectors: bool
) -> dict[str, int]:
    """Bytes that the first host, which needs the most, holds of an evaluation at its largest.

    Args:
      sizes: length of each vector that is measured of a sample, by name.
      num_samples: of one step count.
      batch_size: samples whose features are gathered at a time.
      keeps_vectors: whether all are kept, for precision and recall.

    Returns:
      `statistics`, the sums and the matrices of the distance; `vectors`, kept of every sample for
      precision and recall; and `batch`, the features of two batches, each in both precisions.
    """
    vectors = [size for name, size in sizes.items() if name != LOGITS]
    # The distances of several vectors are computed after each other; their sums are kept.
    sums = sum(2 * size**2 for size in vectors)
    largest = max(vectors)
    kept = 2 * num_samples * sizes[POOL] if keeps_vectors else 0
    return {
        "statistics": _DOUBLE * (sums + (_MATRICES - 2) * largest**2),
        "vectors": _SINGLE * kept,
        "batch": 2 * (_SINGLE + _DOUBLE) * batch_size * sum(sizes.values()),
    }


@functools.lru_cache(maxsize=8)
def _sizes(protocol: str, autoencoder: Autoencoder, latent: tuple[int, ...]) -> _Measured:
    """The shape of an image and the lengths of its vectors; found by tracing, which takes time."""
    shape = image_shape(autoencoder, latent)
    features = abstract_features(get_protocol(protocol))
    return shape, features.sizes(shape), "precision" in features.protocol.distances


def config_bytes(config: ConfigDict, autoencoder: Autoencoder) -> dict[str, int]:
    """`host_bytes` of a config's evaluations; weights may be shapes."""
    evaluation = config.evaluation
    _, sizes, keeps = _sizes(evaluation.protocol, autoencoder, latent_shape(config.data))
    return host_bytes(sizes, evaluation.num_samples, evaluation.batch_size, keeps)


def machine_bytes() -> int:
    """Memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def require_host_memory(
    config: ConfigDict, autoencoder: Autoencoder, capacity: int | None = None
) -> None:
    """Refuses a config whose evaluations no host could compute.

    Args:
      config: of the run.
      autoencoder: decodes its samples; its weights may be shapes.
      capacity: bytes of a host's memory; this machine's by default.

    Raises:
      UserError: they do not fit; the message says which key is to be another.
    """
    if not config.evaluation.every_steps:
        return
    needed = config_bytes(config, autoencoder)
    capacity = machine_bytes() if capacity is None else capacity
    if sum(needed.values()) <= capacity:
        return
    if needed["vectors"] > needed["statistics"]:
        raise UserError(
            f"evaluation.num_samples={config.evaluation.num_samples}: the vectors of so many take "
            f"{needed['vectors'] / 2**30:.0f} GiB of a host that has {capacity / 2**30:.0f}; give "
            "fewer"
        )
    shape, _, _ = _sizes(config.evaluation.protocol, autoencoder, latent_shape(config.data))
    height, width, channels = shape
    raise UserError(
        f"evaluation.protocol={config.evaluation.protocol}: the covariances of images of {height}x"
        f"{width}x{channels} take {needed['statistics'] / 2**30:.0f} GiB of a host that has "
        f"{capacity / 2**30:.0f}; give --config.evaluation.protocol=fd_efficientnet or, with its "
        "files, adm, or --config.evaluation.every_steps=0"
    )

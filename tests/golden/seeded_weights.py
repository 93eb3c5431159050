"""Pseudo-random weights that are a function of their name, so that golden files need not hold them.

Usage:
  weights = seeded_weights({"Dense_0/kernel": (48, 48), "Dense_0/bias": (48,)}, salt="online")
"""

from collections.abc import Mapping
import math
import zlib

import numpy as np

BIAS_SCALE = 0.1
EMBEDDING_SCALE = 0.5
KERNEL_GAIN = 1.35


def seeded_weight(path: str, shape: tuple[int, ...], salt: str) -> np.ndarray:
    """A float32 array of independent normal entries, seeded by the salt and the path.

    Kernels are [..., inputs, outputs] and have standard deviation KERNEL_GAIN / sqrt(fan in).

    Args:
      path: the parameter's name, "/" between modules; its last part is kernel, bias or embedding.
      shape: the parameter's shape.
      salt: tells apart several sets of weights for one network.
    """
    scales = {
        "kernel": KERNEL_GAIN / math.sqrt(math.prod(shape[:-1])),
        "bias": BIAS_SCALE,
        "embedding": EMBEDDING_SCALE,
    }
    scale = scales[path.rsplit("/", 1)[-1]]
    rng = np.random.default_rng(zlib.crc32(f"{salt}:{path}".encode()))
    return (rng.normal(size=shape) * scale).astype(np.float32)


def seeded_weights(shapes: Mapping[str, tuple[int, ...]], salt: str) -> dict[str, np.ndarray]:
    """`seeded_weight` for every parameter, by path."""
    return {path: seeded_weight(path, shape, salt) for path, shape in shapes.items()}

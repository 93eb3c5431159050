"""Features and logits that are functions of a seed, so that golden files need not hold them.

Two overlapping mixtures in 16 dimensions: neither precision nor recall is 0 or 1.
"""

import numpy as np

FEATURES = 16
CLASSES = 20


def _mixture(seed: int, count: int, spread: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = 2 * np.random.default_rng(7).normal(size=(8, FEATURES))
    noise = spread * rng.normal(size=(count, FEATURES))
    return (3 + centres[rng.integers(0, 8, count)] + noise).astype(np.float32)


def reference() -> np.ndarray:
    """[500, 16] float32: real images, so to say."""
    return _mixture(0, 500, 0.8)


def samples() -> np.ndarray:
    """[700, 16] float32: another draw, wider, and partly beside."""
    drawn = _mixture(1, 700, 1.0)
    drawn[:150] += 1
    return drawn


def logits() -> np.ndarray:
    """[700, 20] float32 of a classifier that is sure of some samples."""
    rng = np.random.default_rng(2)
    return (3 * rng.normal(size=(700, CLASSES))).astype(np.float32)

"""Pictures of sizes that resizes treat differently, made from a seed.

Usage:
    for name, pixels in odd_images().items():  # [H, W, 3] uint8
        ...
"""

import numpy as np

# Larger than four times, twice and once the side of 64 or 256, just that side, and smaller.
SIZES = ((643, 597), (300, 451), (97, 150), (257, 256), (64, 64), (31, 29))


def odd_images() -> dict[str, np.ndarray]:
    """Pictures with detail at every scale, by HEIGHTxWIDTH."""
    return {f"{height}x{width}": _picture(height, width) for height, width in SIZES}


def _picture(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng([height, width])
    total = np.zeros((height, width, 3))
    for block in (1, 4, 16, 64):
        rows, columns = -(-height // block), -(-width // block)
        noise = rng.uniform(-1, 1, (rows, columns, 3))
        total += noise.repeat(block, 0).repeat(block, 1)[:height, :width]
    return np.clip(total * 60 + 128, 0, 255).astype(np.uint8)

"""What a distance is measured on: functions from images to feature vectors, by protocol name.

Only features of the 2015 Inception may make a distance called FID; others have names of their own.
"""

import math
from typing import Protocol

import jax
import jax.numpy as jnp

from data_pipeline.errors import UserError


class Features(Protocol):
    """Images [B, H, W, C] in about [-1, 1] to float32 vectors [B, F], inside the jitted program."""

    name: str

    def dimension(self, image_shape: tuple[int, int, int]) -> int: ...

    def __call__(self, images: jax.Array) -> jax.Array: ...


class PixelFeatures:
    """FD-pixel: the pixels themselves, clipped to [-1, 1]. Meaningful for tiny images only."""

    name = "fd_pixel"

    def dimension(self, image_shape: tuple[int, int, int]) -> int:
        return math.prod(image_shape)

    def __call__(self, images: jax.Array) -> jax.Array:
        return jnp.clip(images, -1, 1).reshape(len(images), -1).astype(jnp.float32)


PROTOCOLS: dict[str, type[Features]] = {PixelFeatures.name: PixelFeatures}


def make_features(protocol: str) -> Features:
    """The features of a protocol.

    Raises:
      UserError: the protocol is unknown.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"protocol {protocol!r} is none of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[protocol]()

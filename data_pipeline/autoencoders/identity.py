"""The identity: latents are pixels.

Usage:
    mean, std = Identity().encode(images)  # mean is images, std is None
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from data_pipeline.autoencoders.base import Array


@dataclasses.dataclass(frozen=True)
class Identity:
    """Leaves images as they are."""

    name: str = "identity"
    digest: str = "identity"
    scale: float = 1.0
    deterministic: bool = True

    def latent_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the image."""
        return tuple(image_shape)

    def encode(self, images: Array) -> tuple[Array, Array | None]:
        """Returns the images [n, H, W, C] as the mean, and no std."""
        return images, None

    def decode(self, latents: Array) -> Array:
        """Returns the latents [n, H, W, C]."""
        return latents

    @property
    def decoder_weights(self) -> Mapping[str, Any]:
        """None."""
        return {}

    def decode_with(self, weights: Mapping[str, Any], latents: Array) -> Array:
        """Returns the latents [n, H, W, C]."""
        return latents

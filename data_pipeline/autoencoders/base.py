"""The interface of autoencoders.

Usage:
    class TinyAutoencoder:  # matches `Autoencoder` by its members; no need to inherit
        name = "tiny"
        ...
"""

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

import jax
import numpy as np

Array: TypeAlias = np.ndarray | jax.Array


class Autoencoder(Protocol):
    """Images to latents and back.

    `encode` and `decode` are pure functions of their argument, on numpy or JAX arrays, and may be
    called inside `jax.jit`. Latents are stored as `encode` gives them; the model sees
    `latents * scale`, and `decode` takes what the model made divided by `scale`.
    """

    def __hash__(self) -> int: ...

    @property
    def name(self) -> str:
        """The name by which `load_autoencoder` knows it."""

    @property
    def digest(self) -> str:
        """Identifies the weights: equal digests make equal latents."""

    @property
    def scale(self) -> float:
        """What brings the latents near unit variance."""

    @property
    def deterministic(self) -> bool:
        """Whether a latent is a point, with no standard deviation to sample from."""

    def latent_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape [h, w, c] of the latent of an image of shape [H, W, C]."""

    def encode(self, images: Array) -> tuple[Array, Array | None]:
        """Encodes images [n, H, W, C] in [-1, 1] to the posterior's mean and std, [n, h, w, c].

        The std is None where `deterministic`.
        """

    def decode(self, latents: Array) -> Array:
        """Decodes unscaled latents [n, h, w, c] to images [n, H, W, C] in about [-1, 1]."""

    @property
    def decoder_weights(self) -> Mapping[str, Any]:
        """What `decode` uses: arrays, or their shapes where there is nothing but those."""

    def decode_with(self, weights: Mapping[str, Any], latents: Array) -> Array:
        """`decode` by weights that a program is handed; one that holds them is large."""

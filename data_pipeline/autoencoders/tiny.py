"""The TAESD family: small autoencoders for the latent spaces of large ones.

The architecture is that of https://github.com/madebyollin/taesd (MIT): residual blocks of 3x3
convolutions, 64 wide, and three halvings. A latent is a point; there is no posterior.

Usage:
    autoencoder = load_tiny("taef2", "DIR")  # DIR/taef2_encoder.pth, DIR/taef2_decoder.pth
    mean, _ = autoencoder.encode(images)     # [n, H, W, 3] to [n, H/8, W/8, 32]
"""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline.autoencoders import layers as layers_lib
from data_pipeline.autoencoders.base import Array
from data_pipeline.autoencoders.layers import Layers, Shape
from data_pipeline.autoencoders.weights import fitted, sha256
from data_pipeline.errors import UserError
from data_pipeline.torch_archive import read_torch_archive

_WIDTH = 64
_REDUCTION = 8
_CHANNELS = 3


@dataclasses.dataclass(frozen=True)
class Variant:
    """What tells members of the family apart.

    Attributes:
        latent_channels: channels of a latent.
        scale: what brings its latents near unit variance.
        pooled: whether the blocks at the lowest resolution normalise over the whole latent.
    """

    latent_channels: int
    scale: float
    pooled: bool = False


# The authors distil into latents that are scaled already, so the published scale is 1. FLUX.2's are
# not: taef2's have a standard deviation of 0.85 over eight photographs, cut square and reduced to
# 256x256 (0.78 to 0.90 each; those of scikit-learn, Matplotlib and scikit-image).
VARIANTS = {
    "taesd": Variant(4, 1.0),
    "taesdxl": Variant(4, 1.0),
    "taesd3": Variant(16, 1.0),
    "taef1": Variant(16, 1.0),
    "taef2": Variant(32, 1.18, pooled=True),
}


@dataclasses.dataclass(frozen=True, eq=False)
class TinyAutoencoder:
    """A deterministic encoder and decoder.

    Attributes:
        name: the member of the family, a key of VARIANTS.
        digest: the SHA-256 of the encoder's file followed by the decoder's.
        variant: the architecture.
        encoder_weights: float32, by the names of the file and in torch's layout.
        decoder_weights: likewise.
    """

    name: str
    digest: str
    variant: Variant
    encoder_weights: dict[str, np.ndarray] = dataclasses.field(repr=False)
    decoder_weights: dict[str, np.ndarray] = dataclasses.field(repr=False)
    deterministic: bool = True

    @property
    def scale(self) -> float:
        """What brings the latents near unit variance."""
        return self.variant.scale

    def latent_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape [h, w, c] of the latent of an image [H, W, 3].

        Raises:
            UserError: the image has other channels, or sides that are no multiples of 8.
        """
        height, width, channels = image_shape
        if channels != _CHANNELS or height % _REDUCTION or width % _REDUCTION:
            raise UserError(
                f"autoencoder {self.name} takes images of {_CHANNELS} channels and sides that"
                f" {_REDUCTION} divides, not {height}x{width}x{channels}"
            )
        return height // _REDUCTION, width // _REDUCTION, self.variant.latent_channels

    def encode(self, images: Array) -> tuple[Array, Array | None]:
        """Encodes images [n, H, W, 3] in [-1, 1] to latents [n, h, w, c], and no std."""
        network = functools.partial(_encode, self.variant)
        unit = jnp.asarray(images, jnp.float32) * 0.5 + 0.5
        return layers_lib.run(network, self.encoder_weights, unit), None

    def decode(self, latents: Array) -> Array:
        """Decodes unscaled latents [n, h, w, c] to images [n, H, W, 3] in about [-1, 1]."""
        return self.decode_with(self.decoder_weights, latents)

    def decode_with(self, weights: Mapping[str, Any], latents: Array) -> Array:
        """`decode` by other weights of the same shapes."""
        network = functools.partial(_decode, self.variant)
        unit = layers_lib.run(network, weights, jnp.asarray(latents, jnp.float32))
        return unit * 2 - 1


def load_tiny(name: str, directory: epath.PathLike) -> TinyAutoencoder:
    """Loads NAME_encoder.pth and NAME_decoder.pth.

    Args:
        name: a key of VARIANTS.
        directory: holds the two files; local or `gs://`.

    Raises:
        UserError: a file is missing or damaged, or holds another network.
    """
    variant = VARIANTS[name]
    paths = [epath.Path(directory) / f"{name}_{part}.pth" for part in ("encoder", "decoder")]
    encoder, decoder = (
        fitted(path, read_torch_archive(path), shapes)
        for path, shapes in zip(paths, weight_shapes(variant), strict=True)
    )
    return TinyAutoencoder(name, sha256(paths), variant, encoder, decoder)


def weight_shapes(variant: Variant) -> tuple[dict[str, Shape], dict[str, Shape]]:
    """The shapes of the encoder's and the decoder's weights by the names of the files."""
    encode, decode = (functools.partial(network, variant) for network in (_encode, _decode))
    return (
        layers_lib.shapes_of(encode, (1, _REDUCTION, _REDUCTION, _CHANNELS)),
        layers_lib.shapes_of(decode, (1, 1, 1, variant.latent_channels)),
    )


def _encode(variant: Variant, layers: Layers, images: jax.Array) -> jax.Array:
    """Images [n, H, W, 3] in [0, 1] to latents; the numbers count the layers of the files."""
    x = layers.at(0).conv(images, _WIDTH)
    x = _block(layers.at(1), x)
    for first in (2, 6, 10):
        x = layers.at(first).conv(x, _WIDTH, stride=2, bias=False)
        for index in range(first + 1, first + 4):
            x = _block(layers.at(index), x, pooled=variant.pooled and first == 10)
    return layers.at(14).conv(x, variant.latent_channels)


def _decode(variant: Variant, layers: Layers, latents: jax.Array) -> jax.Array:
    """Latents to images [n, H, W, 3] in about [0, 1]."""
    # Layer 0 bounds the latents softly, 2 is a ReLU, and 6, 11 and 16 repeat pixels.
    x = jnp.tanh(latents / 3) * 3
    x = jax.nn.relu(layers.at(1).conv(x, _WIDTH))
    for first in (3, 8, 13):
        for index in range(first, first + 3):
            x = _block(layers.at(index), x, pooled=variant.pooled and first == 3)
        x = layers.at(first + 4).conv(layers_lib.upsample(x), _WIDTH, bias=False)
    x = _block(layers.at(18), x)
    return layers.at(19).conv(x, _CHANNELS)


def _block(layers: Layers, x: jax.Array, *, pooled: bool = False) -> jax.Array:
    """Three convolutions beside the identity; with `pooled`, a normalised branch before them."""
    if pooled:
        hidden = layers.at("pool", 0).conv(x, 4 * _WIDTH, size=1, bias=False)
        hidden = jax.nn.relu(layers.at("pool", 1).group_norm(hidden, 4, 1e-5))
        x += layers.at("pool", 3).conv(hidden, _WIDTH, size=1, bias=False)
    hidden = jax.nn.relu(layers.at("conv", 0).conv(x, _WIDTH))
    hidden = jax.nn.relu(layers.at("conv", 2).conv(hidden, _WIDTH))
    return jax.nn.relu(layers.at("conv", 4).conv(hidden, _WIDTH) + x)

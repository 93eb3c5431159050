"""AutoencoderKL, the variational autoencoder of latent diffusion, from the files of diffusers.

It reads the folders in which diffusers keeps the autoencoders of Stable Diffusion 1 and 2 (4
channels, Rombach et al., arXiv 2112.10752), SDXL (4), Stable Diffusion 3 and FLUX.1 (16).

Usage:
    autoencoder = load_kl("sd-vae-ft-mse", "DIR")  # a folder of diffusers
    mean, std = autoencoder.encode(images)         # [n, H, W, 3] to [n, H/8, W/8, 4], twice
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
from data_pipeline.autoencoders.kl_config import KLConfig
from data_pipeline.autoencoders.layers import Layers, Shape
from data_pipeline.autoencoders.weights import fitted, read_safetensors
from data_pipeline.errors import UserError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"

# What diffusers bounds the log variance to before it takes the exponential.
_LOG_VARIANCE = (-30.0, 20.0)
_EPSILON = 1e-6

# The attention's layers before diffusers renamed them; the published SD weights have these names.
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclasses.dataclass(frozen=True, eq=False)
class AutoencoderKL:
    """A posterior N(mean, std^2) for every image, and the decoder.

    A published `shift_factor` belongs to the latents here: `encode` subtracts it and `decode` adds
    it, so that the model sees (mean - shift) * scale, as its authors trained theirs, and `scale` is
    all that the rest of the system needs to know.

    Attributes:
        name: the name it was loaded by.
        digest: the SHA-256 of the weights' file; a shift is appended, as it changes the latents.
        config: the architecture.
        weights: float32, by diffusers' names and in torch's layout.
    """

    name: str
    digest: str
    config: KLConfig
    weights: dict[str, np.ndarray] = dataclasses.field(repr=False)
    deterministic: bool = False

    @property
    def scale(self) -> float:
        """The `scaling_factor`: one over the standard deviation of all latents together."""
        return self.config.scaling_factor

    def latent_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape [h, w, c] of the latent of an image [H, W, C].

        Raises:
            UserError: the image's channels are others, or its sides no multiples of the reduction.
        """
        height, width, channels = image_shape
        factor = self.config.reduction
        if channels != self.config.in_channels or height % factor or width % factor:
            raise UserError(
                f"autoencoder {self.name} takes images of {self.config.in_channels} channels and"
                f" sides that {factor} divides, not {height}x{width}x{channels}"
            )
        return height // factor, width // factor, self.config.latent_channels

    def encode(self, images: Array) -> tuple[Array, Array | None]:
        """Encodes images [n, H, W, 3] in [-1, 1] to the posterior's mean and std, [n, h, w, c]."""
        network = functools.partial(_encode, self.config)
        moments = layers_lib.run(network, self.weights, jnp.asarray(images, jnp.float32))
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        std = jnp.exp(0.5 * jnp.clip(log_variance, *_LOG_VARIANCE))
        return mean - self.config.shift_factor, std

    def decode(self, latents: Array) -> Array:
        """Decodes unscaled latents [n, h, w, c] to images [n, H, W, 3] in about [-1, 1]."""
        return self.decode_with(self.weights, latents)

    @property
    def decoder_weights(self) -> Mapping[str, Any]:
        """Those of `weights` that are not the encoder's."""
        ours = ("decoder.", "post_quant_conv.")
        return {name: array for name, array in self.weights.items() if name.startswith(ours)}

    def decode_with(self, weights: Mapping[str, Any], latents: Array) -> Array:
        """`decode` by other weights of the same shapes."""
        network = functools.partial(_decode, self.config)
        shifted = jnp.asarray(latents, jnp.float32) + self.config.shift_factor
        return layers_lib.run(network, weights, shifted)


def load_kl(name: str, directory: epath.PathLike) -> AutoencoderKL:
    """Loads a folder of diffusers.

    Args:
        name: what the autoencoder is to be called in manifests.
        directory: holds config.json and diffusion_pytorch_model.safetensors; local or `gs://`.

    Raises:
        UserError: a file is missing or damaged, or describes another kind of network.
    """
    folder = epath.Path(directory)
    config = KLConfig.load(folder / CONFIG_FILE)
    path = folder / WEIGHTS_FILE
    tensors, digest = read_safetensors(path)
    renamed = {_new_name(key): tensor for key, tensor in tensors.items()}
    weights = fitted(path, renamed, weight_shapes(config))
    if config.shift_factor:
        digest += f"-shift{config.shift_factor}"
    return AutoencoderKL(name, digest, config, weights)


def weight_shapes(config: KLConfig) -> dict[str, Shape]:
    """The shapes of all weights by diffusers' names."""
    factor = config.reduction
    encoder = layers_lib.shapes_of(
        functools.partial(_encode, config), (1, factor, factor, config.in_channels)
    )
    decoder = layers_lib.shapes_of(
        functools.partial(_decode, config), (1, 1, 1, config.latent_channels)
    )
    return encoder | decoder


def _new_name(name: str) -> str:
    for old, new in _OLD_NAMES.items():
        name = name.replace(f".attentions.0.{old}.", f".attentions.0.{new}.")
    return name


def _encode(config: KLConfig, layers: Layers, images: jax.Array) -> jax.Array:
    """Images [n, H, W, 3] to the posterior's mean and log variance [n, h, w, 2c]."""
    groups = config.norm_num_groups
    encoder = layers.at("encoder")
    x = encoder.at("conv_in").conv(images, config.block_out_channels[0])
    for level, width in enumerate(config.block_out_channels):
        block = encoder.at("down_blocks", level)
        for index in range(config.layers_per_block):
            x = _resnet(block.at("resnets", index), x, width, groups)
            if config.lowest_attention and level == len(config.block_out_channels) - 1:
                x = _attend(block.at("attentions", index), x, groups)
        if level < len(config.block_out_channels) - 1:
            # The original code pads behind only.
            x = block.at("downsamplers", 0, "conv").conv(x, width, stride=2, padding=(0, 1))
    x = _middle(encoder.at("mid_block"), x, config)
    x = jax.nn.silu(encoder.at("conv_norm_out").group_norm(x, groups, _EPSILON))
    x = encoder.at("conv_out").conv(x, 2 * config.latent_channels)
    if config.use_quant_conv:
        x = layers.at("quant_conv").conv(x, 2 * config.latent_channels, size=1)
    return x


def _decode(config: KLConfig, layers: Layers, latents: jax.Array) -> jax.Array:
    """Latents [n, h, w, c] to images [n, H, W, 3]."""
    groups = config.norm_num_groups
    decoder = layers.at("decoder")
    x = latents
    if config.use_post_quant_conv:
        x = layers.at("post_quant_conv").conv(x, config.latent_channels, size=1)
    x = decoder.at("conv_in").conv(x, config.block_out_channels[-1])
    x = _middle(decoder.at("mid_block"), x, config)
    for level, width in enumerate(reversed(config.block_out_channels)):
        block = decoder.at("up_blocks", level)
        for index in range(config.layers_per_block + 1):
            x = _resnet(block.at("resnets", index), x, width, groups)
            if config.lowest_attention and level == 0:
                x = _attend(block.at("attentions", index), x, groups)
        if level < len(config.block_out_channels) - 1:
            x = block.at("upsamplers", 0, "conv").conv(layers_lib.upsample(x), width)
    x = jax.nn.silu(decoder.at("conv_norm_out").group_norm(x, groups, _EPSILON))
    return decoder.at("conv_out").conv(x, config.out_channels)


def _middle(layers: Layers, x: jax.Array, config: KLConfig) -> jax.Array:
    """The blocks at the lowest resolution, between which all pixels attend to each other."""
    width, groups = x.shape[-1], config.norm_num_groups
    x = _resnet(layers.at("resnets", 0), x, width, groups)
    if config.mid_block_add_attention:
        x = _attend(layers.at("attentions", 0), x, groups)
    return _resnet(layers.at("resnets", 1), x, width, groups)


def _attend(layers: Layers, x: jax.Array, groups: int) -> jax.Array:
    """All pixels attend to each other, beside the identity."""
    width = x.shape[-1]
    normed = layers.at("group_norm").group_norm(x, groups, _EPSILON)
    pixels = normed.reshape(x.shape[0], -1, width)
    query, key, value = (layers.at(name).linear(pixels, width) for name in ("to_q", "to_k", "to_v"))
    attended = layers_lib.attention(query, key, value)
    return x + layers.at("to_out", 0).linear(attended, width).reshape(x.shape)


def _resnet(layers: Layers, x: jax.Array, width: int, groups: int) -> jax.Array:
    """Two convolutions beside the identity, or beside a linear map where the width changes."""
    hidden = jax.nn.silu(layers.at("norm1").group_norm(x, groups, _EPSILON))
    hidden = layers.at("conv1").conv(hidden, width)
    hidden = jax.nn.silu(layers.at("norm2").group_norm(hidden, groups, _EPSILON))
    hidden = layers.at("conv2").conv(hidden, width)
    if x.shape[-1] != width:
        x = layers.at("conv_shortcut").conv(x, width, size=1)
    return x + hidden

"""Koopman network: encoders, a linear operator and a decoder, from noise to data in one step.

Source: "One-Step Offline Distillation of Diffusion-based Models via Koopman Modeling" (arXiv
2505.13358, section 4) and its official code, whose U-Net halves are transformers here.

Usage:
  model = Koopman(KoopmanConfig(image_size=32, channels=4, ..., code_channels=8))
  samples = model.apply(params, x0, t, d, labels)      # D(K E_T(x_0) + c_y)
"""

import dataclasses
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from shortcut_tpu.models.dit import DiTConfig, layer_norm
from shortcut_tpu.models.embeddings import sincos_2d
from shortcut_tpu.models.model import Model, Params
from shortcut_tpu.models.patches import from_patches, to_patches
from shortcut_tpu.models.transformer import run_blocks, stacked_blocks


@dataclasses.dataclass(frozen=True)
class KoopmanConfig(DiTConfig):
    """A DiT's shapes and those of the code.

    Attributes:
      code_channels: numbers that a patch is encoded into; the operator is a full matrix over those
        of all patches together.
    """

    code_channels: int = 8


class Parts(NamedTuple):
    """What the loss compares.

    Attributes:
      code: z_0 = E_0(x_1) [B, M].
      pushed: z_p = K z_T + c_y [B, M].
      of_code: D(z_0) [B, H, W, C].
      of_pushed: D(z_p) [B, H, W, C].
    """

    code: jax.Array
    pushed: jax.Array
    of_code: jax.Array
    of_pushed: jax.Array


class Encoder(nnx.Module):
    """Image [B, H, W, C] -> code [B, N code_channels]."""

    def __init__(self, config: KoopmanConfig, *, rngs: nnx.Rngs):
        self.config = config
        xavier = nnx.initializers.xavier_uniform()
        pixels = config.patch_size**2 * config.channels
        self.patch_embed = nnx.Linear(pixels, config.width, kernel_init=xavier, rngs=rngs)
        self.blocks = stacked_blocks(config, config.depth, config.mlp_ratio, rngs=rngs)
        self.project = nnx.Linear(config.width, config.code_channels, kernel_init=xavier, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        config = self.config
        dtype = jnp.dtype(config.dtype)
        h = self.patch_embed(to_patches(x, config.patch_size).astype(dtype))
        h = (h + sincos_2d(config.width, config.image_size // config.patch_size)).astype(dtype)
        h = run_blocks("blocks", self.blocks, h, None, config)
        return self.project(layer_norm(h)).reshape(len(x), -1)


class Decoder(nnx.Module):
    """Code [B, N code_channels] -> image [B, H, W, C]."""

    def __init__(self, config: KoopmanConfig, *, rngs: nnx.Rngs):
        self.config = config
        xavier, zeros = nnx.initializers.xavier_uniform(), nnx.initializers.zeros_init()
        pixels = config.patch_size**2 * config.channels
        self.code_embed = nnx.Linear(
            config.code_channels, config.width, kernel_init=xavier, rngs=rngs
        )
        self.blocks = stacked_blocks(config, config.depth, config.mlp_ratio, rngs=rngs)
        self.project = nnx.Linear(config.width, pixels, kernel_init=zeros, rngs=rngs)

    def __call__(self, code: jax.Array) -> jax.Array:
        config = self.config
        h = self.code_embed(code.reshape(len(code), config.num_patches, config.code_channels))
        h = (h + sincos_2d(config.width, config.image_size // config.patch_size)).astype(h.dtype)
        h = run_blocks("blocks", self.blocks, h, None, config)
        return from_patches(self.project(layer_norm(h)).astype(jnp.float32), config.patch_size)


class Network(nnx.Module):
    """The modules; an encoder of noise, E_T, one of data, E_0, the operator and the decoder."""

    def __init__(self, config: KoopmanConfig, *, rngs: nnx.Rngs):
        size = config.num_patches * config.code_channels
        self.noise_encoder = Encoder(config, rngs=rngs)
        self.data_encoder = Encoder(config, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)
        identity = nnx.initializers.constant(np.eye(size, dtype=np.float32))
        self.operator = nnx.Linear(size, size, use_bias=False, kernel_init=identity, rngs=rngs)
        self.label_embed = nnx.Embed(
            config.num_classes + 1,
            size,
            embedding_init=nnx.initializers.normal(0.02),
            rngs=rngs,
        )

    def push(self, code: jax.Array, labels: jax.Array) -> jax.Array:
        return self.operator(code) + self.label_embed(labels).astype(code.dtype)


class Koopman(Model):
    """The network as pure functions: `init`, `apply` and, for training, `parts`."""

    Config = KoopmanConfig
    Network = Network

    def apply(
        self,
        params: Params,
        x: jax.Array,
        t: jax.Array,
        d: jax.Array,
        labels: jax.Array,
        **conditions: jax.Array,
    ) -> jax.Array:
        """Samples D(K E_T(x) + c_y) [B, H, W, C] of the noises x; t and d are not looked at."""
        network = self.network(params)
        return network.decoder(network.push(network.noise_encoder(x), labels))

    def parts(
        self,
        params: Params,
        x0: jax.Array,
        x1: jax.Array,
        labels: jax.Array,
        key: jax.Array,
        noise: float,
    ) -> Parts:
        """The codes of pairs and what the decoder makes of them.

        Args:
          params: from `init`, any float dtype.
          x0: [B, H, W, C] noises.
          x1: [B, H, W, C] the teacher's samples from these noises.
          labels: [B] int.
          key: of what is added to the codes before they are pushed or decoded.
          noise: its standard deviation.
        """
        network = self.network(params)
        code, start = network.data_encoder(x1), network.noise_encoder(x0)
        added = noise * jax.random.normal(key, (2, *code.shape), code.dtype)
        pushed = network.push(start + added[1], labels)
        # One batch: the decoder's weights are read once.
        images = network.decoder(jnp.concatenate([code + added[0], pushed]))
        codes = (z.astype(jnp.float32) for z in (code, pushed))
        return Parts(*codes, *jnp.split(images, 2))

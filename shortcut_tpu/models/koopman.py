"""Koopman network: encoders, a linear operator and a decoder, from noise to data in one step.

Source: "One-Step Offline Distillation of Diffusion-based Models via Koopman Modeling" (arXiv
2505.13358, section 4) and its official code, whose U-Nets are transformers here. They are told the
label in every block, as the U-Nets are; the times, which are the same for all rows, they are not.

Usage:
  model = Koopman(KoopmanConfig(image_size=32, channels=4, ..., code_channels=8))
  samples = model.apply(params, x0, t, d, labels)      # D(K E_T(x_0, y) + c_y, y)
"""

import dataclasses
import math
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from shortcut_tpu.array_types import Labels, Rows, Scalars
from shortcut_tpu.models.dit import DiTConfig, layer_norm
from shortcut_tpu.models.embeddings import sincos_2d
from shortcut_tpu.models.model import Model, Params
from shortcut_tpu.models.patches import from_patches, to_patches
from shortcut_tpu.models.transformer import Dropout, run_blocks, stacked_blocks


@dataclasses.dataclass(frozen=True)
class KoopmanConfig(DiTConfig):
    """A DiT's shapes and those of the code.

    Attributes:
      code_channels: numbers that a patch is encoded into; the operator works on those of all
        patches together.
    """

    code_channels: int = 8


Codes = Float[Array, "B M"]


class Parts(NamedTuple):
    """What the loss compares.

    Attributes:
      code: z_0 = E_0(x_1, y), M numbers for each row.
      pushed: z_p = K z_T + c_y.
      of_code: D(z_0, y).
      of_pushed: D(z_p, y).
    """

    code: Codes
    pushed: Codes
    of_code: Rows
    of_pushed: Rows


class Tokens(nnx.Module):
    """From `inputs` to `outputs` values of each token, through blocks that are told the label."""

    def __init__(
        self,
        config: KoopmanConfig,
        inputs: int,
        outputs: int,
        *,
        output_init: nnx.Initializer,
        rngs: nnx.Rngs,
    ):
        self.config = config
        xavier = nnx.initializers.xavier_uniform()
        self.embed = nnx.Linear(inputs, config.width, kernel_init=xavier, rngs=rngs)
        # The label is added to the queries, keys and values of every block.
        self.label_embed = nnx.Embed(
            config.num_classes + 1,
            3 * config.width,
            embedding_init=nnx.initializers.normal(0.02),
            rngs=rngs,
        )
        self.blocks = stacked_blocks(config, config.depth, config.mlp_ratio, rngs=rngs)
        self.project = nnx.Linear(config.width, outputs, kernel_init=output_init, rngs=rngs)

    def __call__(
        self, tokens: Float[Array, "B N I"], labels: Labels, dropout: Dropout | None
    ) -> Float[Array, "B N O"]:
        config = self.config
        dtype = jnp.dtype(config.dtype)
        h = self.embed(tokens.astype(dtype))
        h = (h + sincos_2d(config.width, config.image_size // config.patch_size)).astype(dtype)
        heads, head_dim = config.num_heads, config.width // config.num_heads
        label = self.label_embed(labels).astype(dtype)
        label = label.reshape(1, len(h), 1, 3, heads, head_dim)
        h = run_blocks("blocks", self.blocks, h, label, config, dropout)
        return self.project(layer_norm(h))


class Operator(nnx.Module):
    """z -> K z, where K = Re(P diag(lambda) Q) and |lambda| < 1.

    P and Q are complex [M, M], rows of P's real and imaginary part of length 1, as the official
    code has it; Q starts apart from P and nothing draws it towards P^-1, nor there.
    """

    def __init__(self, size: int, *, rngs: nnx.Rngs):
        orthogonal, key = nnx.initializers.orthogonal(), rngs.params
        normal = nnx.initializers.normal((2 * size) ** -0.5)
        self.out = nnx.Param(jnp.stack([orthogonal(key(), (size, size)) for _ in range(2)]))
        self.into = nnx.Param(normal(key(), (2, size, size)))
        # Eigenvalues are uniform over the unit disc at first.
        area, turn = jax.random.uniform(key(), (2, size), minval=1e-7)
        self.log_decay = nnx.Param(jnp.log(-0.5 * jnp.log(area)))
        self.log_phase = nnx.Param(jnp.log(2 * math.pi * turn))

    def __call__(self, code: Codes) -> Codes:
        decay = jnp.exp(-jnp.exp(self.log_decay[...].astype(jnp.float32)))
        phase = jnp.exp(self.log_phase[...].astype(jnp.float32))
        real, imaginary = jnp.einsum("bm,pkm->pbk", code, self.into[...])
        cosine, sine = (decay * part(phase) for part in (jnp.cos, jnp.sin))
        turned = (real * cosine - imaginary * sine, real * sine + imaginary * cosine)
        out = self.out[...].astype(jnp.float32)
        out = out / jnp.linalg.norm(out, axis=-1, keepdims=True)
        signed = out * jnp.array([1.0, -1.0])[:, None, None]
        return jnp.einsum(
            "pbk,pmk->bm", jnp.stack(turned).astype(code.dtype), signed.astype(code.dtype)
        )


class Network(nnx.Module):
    """The modules: an encoder of noise, E_T, one of data, E_0, the operator and the decoder."""

    def __init__(self, config: KoopmanConfig, *, rngs: nnx.Rngs):
        self.config = config
        values, numbers = config.patch_values, config.code_channels
        size = config.num_patches * numbers
        xavier, zeros = nnx.initializers.xavier_uniform(), nnx.initializers.zeros_init()
        self.noise_encoder = Tokens(config, values, numbers, output_init=xavier, rngs=rngs)
        self.data_encoder = Tokens(config, values, numbers, output_init=xavier, rngs=rngs)
        self.decoder = Tokens(config, numbers, values, output_init=zeros, rngs=rngs)
        self.operator = Operator(size, rngs=rngs)
        # As a linear layer of so many classes starts by torch's default.
        self.label_embed = nnx.Embed(
            config.num_classes + 1,
            size,
            embedding_init=nnx.initializers.normal((3 * config.num_classes) ** -0.5),
            rngs=rngs,
        )

    def encode(self, encoder: Tokens, x: Rows, labels: Labels, dropout: Dropout | None) -> Codes:
        tokens = to_patches(x, self.config.patch_size)
        return encoder(tokens, labels, dropout).reshape(len(x), -1)

    def push(self, code: Codes, labels: Labels) -> Codes:
        return self.operator(code) + self.label_embed(labels).astype(code.dtype)

    def decode(self, code: Codes, labels: Labels, dropout: Dropout | None) -> Rows:
        """float32."""
        tokens = code.reshape(len(code), -1, self.config.code_channels)
        patches = self.decoder(tokens, labels, dropout).astype(jnp.float32)
        return from_patches(patches, self.config.patch_size)


class Koopman(Model):
    """The network as pure functions: `init`, `apply` and, for training, `parts`."""

    Config = KoopmanConfig
    Network = Network

    def apply(
        self,
        params: Params,
        x: Rows,
        t: Scalars,
        d: Scalars,
        labels: Labels,
        **conditions: Scalars,
    ) -> Rows:
        """Samples D(K E_T(x, y) + c_y, y) of noises x; t and d are not looked at."""
        network = self.network(params)
        code = network.encode(network.noise_encoder, x, labels, None)
        return network.decode(network.push(code, labels), labels, None)

    def parts(
        self,
        params: Params,
        x0: Rows,
        x1: Rows,
        labels: Labels,
        key: jax.Array,
        noise: float,
        dropout: float,
    ) -> Parts:
        """The codes of pairs and what the decoder makes of them.

        Args:
          params: from `init`, any float dtype.
          x0: noises.
          x1: the teacher's samples from these noises.
          labels: classes.
          key: of all that is random.
          noise: standard deviation of what is added to the codes before they are pushed or decoded.
          dropout: of the hidden activations of encoders and decoder.
        """
        network = self.network(params)
        noise_key, *keys = jax.random.split(key, 4)
        drops = [Dropout(key, dropout) if dropout else None for key in keys]
        code = network.encode(network.data_encoder, x1, labels, drops[0])
        start = network.encode(network.noise_encoder, x0, labels, drops[1])
        added = noise * jax.random.normal(noise_key, (2, *code.shape), code.dtype)
        pushed = network.push(start + added[1], labels)
        # One batch: the decoder's weights are read once.
        codes = jnp.concatenate([code + added[0], pushed])
        images = network.decode(codes, jnp.concatenate([labels, labels]), drops[2])
        compared = (z.astype(jnp.float32) for z in (code, pushed))
        return Parts(*compared, *jnp.split(images, 2))

"""The Generative Equilibrium Transformer: data is the fixed point of a few blocks on noise.

Source: "One-Step Diffusion Distillation via Deep Equilibrium Models" (arXiv 2401.08639, section 4)
and its official code. Departures: the iteration starts at zero and not at random, so that a sample
is a function of its noise; and the weights of the iterated blocks are not normalised.

Usage:
  model = GET(GETConfig(image_size=32, channels=4, ..., injection_depth=6, equilibrium_depth=3))
  samples = model.apply(params, x0, t, d, labels)      # [B, H, W, 6 C]: one after each iteration
"""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp

from shortcut_tpu.array_types import Labels, Outputs, Rows, Scalars
from shortcut_tpu.models.dit import DiTConfig, layer_norm
from shortcut_tpu.models.embeddings import sincos_2d
from shortcut_tpu.models.model import Model, Params
from shortcut_tpu.models.patches import from_patches, to_patches
from shortcut_tpu.models.transformer import run_blocks, stacked_blocks


@dataclasses.dataclass(frozen=True)
class GETConfig(DiTConfig):
    """A DiT's shapes, whose `depth` does not count here, and those of the two transformers.

    Attributes:
      injection_depth: blocks that work on the noise, once.
      equilibrium_depth: blocks that are iterated, with weights shared by all iterations.
      equilibrium_mlp_ratio: their MLP's width over the network's.
      iterations: how often.
    """

    injection_depth: int = 6
    equilibrium_depth: int = 3
    equilibrium_mlp_ratio: float = 8.0
    iterations: int = 6


class Network(nnx.Module):
    """The modules of a GET."""

    def __init__(self, config: GETConfig, *, rngs: nnx.Rngs):
        self.config = config
        width, heads, zeros = config.width, config.num_heads, nnx.initializers.zeros_init()
        xavier = nnx.initializers.xavier_uniform()
        pixels = config.patch_size**2 * config.channels
        self.patch_embed = nnx.Linear(pixels, width, kernel_init=xavier, rngs=rngs)
        # The label is added to the queries, keys and values of every block.
        self.label_embed = nnx.Embed(
            config.num_classes + 1,
            3 * width,
            embedding_init=nnx.initializers.normal(0.02),
            rngs=rngs,
        )
        self.injection_blocks = stacked_blocks(
            config, config.injection_depth, config.mlp_ratio, rngs=rngs
        )
        self.inject = nnx.LinearGeneral(
            width,
            (config.equilibrium_depth, 3, heads, width // heads),
            use_bias=False,
            # One matrix [D, 3 D depth], as in the official code: variance 2 / (D (1 + 3 depth)).
            kernel_init=xavier,
            rngs=rngs,
        )
        self.equilibrium_blocks = stacked_blocks(
            config, config.equilibrium_depth, config.equilibrium_mlp_ratio, rngs=rngs
        )
        self.project = nnx.Linear(width, pixels, kernel_init=zeros, rngs=rngs)

    def __call__(self, x: Rows, labels: Labels) -> Outputs:
        config = self.config
        dtype, heads = jnp.dtype(config.dtype), config.num_heads
        h = self.patch_embed(to_patches(x, config.patch_size).astype(dtype))
        h = (h + sincos_2d(config.width, config.image_size // config.patch_size)).astype(dtype)
        label = self.label_embed(labels).astype(dtype)
        label = label.reshape(1, len(x), 1, 3, heads, config.width // heads)
        h = run_blocks("injection_blocks", self.injection_blocks, h, label, config)
        injected = jnp.moveaxis(self.inject(h), 2, 0) + label

        graph, weights = nnx.split(self.equilibrium_blocks)

        def iterate(z: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
            blocks = nnx.merge(graph, weights)
            z = run_blocks("equilibrium_blocks", blocks, z, injected, config)
            return z, self.project(layer_norm(z)).astype(jnp.float32)

        # Turns of this scan share their weights, those of `run_blocks` have each its own.
        _, outputs = jax.lax.scan(iterate, jnp.zeros_like(h), None, length=config.iterations)
        images = [from_patches(tokens, config.patch_size) for tokens in outputs]
        return jnp.concatenate(images, axis=-1)


class GET(Model):
    """A GET as two pure functions, `init` and `apply`."""

    Config = GETConfig
    Network = Network

    def apply(
        self,
        params: Params,
        x: Rows,
        t: Scalars,
        d: Scalars,
        labels: Labels,
        **conditions: Scalars,
    ) -> Outputs:
        """Samples y^1 .. y^n of the noises x, one after each of the n iterations.

        Args:
          params: from `init`, any float dtype.
          x: noise.
          t: not looked at.
          d: not looked at.
          labels: classes.

        Returns:
          [B, H, W, n C] float32, the last C channels the sample.
        """
        return self.network(params)(x, labels)

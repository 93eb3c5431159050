"""The latent Diffusion Transformer, conditioned on time, step size and label.

Architecture: "Scalable Diffusion Models with Transformers" (arXiv 2212.09748), with the step-size
condition of "One Step Diffusion via Shortcut Models" (arXiv 2410.12557, section 4) or, where
`decoupled_depth` is above 0, that of "Decoupled MeanFlow" (arXiv 2510.24474 and its code): no
embedder of the step size, so that a flow-matching model is such a network already.

Usage:
  model = DiT(DiTConfig(image_size=32, channels=4, **SIZES["B/2"], num_classes=1000))
  params = model.init(jax.random.key(0))                  # nested dict of arrays
  v = model.apply(params, x, t, d, labels)                # [B, H, W, C] float32
"""

import abc
import dataclasses
from typing import Any

from flax import nnx
import jax
from jax.custom_derivatives import linear_call
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from shortcut_tpu.array_types import Labels, Outputs, Rows, Scalars, Tokens, Vectors
from shortcut_tpu.models.attention import attention, check_attention
from shortcut_tpu.models.embeddings import ScalarEmbedder, level_of, sincos_2d
from shortcut_tpu.models.linear import keep, linear, linear_heads
from shortcut_tpu.models.model import Model, Params
from shortcut_tpu.models.patches import from_patches, to_patches
from shortcut_tpu.models.placement import (
    place_inputs,
    place_output,
    place_rows,
    weights_are_whole,
)
from shortcut_tpu.models.stacks import REMAT_POLICIES, run_stack, stacked
from shortcut_tpu.models.sums import by_products, over_width, to_tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig(abc.ABC):
    """Shapes and numerics of a DiT, whatever its tokens are made of and conditioned on.

    `configs/common.py` documents each key for users.

    The objective, not the user, decides on the last four.

    Attributes:
      conditions: names of scalar conditions beside t and d, each with an embedder of its own.
      heads: velocities that come out, side by side in the last axis.
      smooth_times: t and d enter as they are, in slow sinusoids, as in MeanFlow's network; without
        it as t x 1000 and level x 100, which tell apart the points of a grid.
      told_time: whether t enters at all.
      decoupled_depth: the last blocks that are told where the step ends, t + d, and not where it
        starts, while the others are told t alone; 0 for the step size in all of them.
    """

    channels: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    finest_level: int = 7
    faithful: bool = False
    dtype: str = "bfloat16"
    tangent_dtype: str = "float32"
    remat: str = "none"
    attention: str = "auto"
    unroll: int = -1
    conditions: tuple[str, ...] = ()
    heads: int = 1
    smooth_times: bool = False
    told_time: bool = True
    decoupled_depth: int = 0

    def __post_init__(self) -> None:
        if self.decoupled_depth > self.depth:
            raise ValueError(
                f"model.dit.decoupled_depth={self.decoupled_depth}: it may be at most "
                f"model.depth={self.depth}"
            )
        if self.decoupled_depth and not (self.smooth_times and self.told_time):
            raise ValueError(
                f"model.dit.decoupled_depth={self.decoupled_depth}: it may be 0 for an objective "
                "whose network is not told t and any step size, as meanflow's is"
            )
        if self.width % self.num_heads or self.width % 4:
            raise ValueError(
                f"model.width={self.width} must be a multiple of 4 and of "
                f"model.num_heads={self.num_heads}"
            )
        if self.remat not in REMAT_POLICIES:
            raise ValueError(f"model.remat={self.remat!r} is none of {', '.join(REMAT_POLICIES)}")
        check_attention(self.attention, self.num_tokens)
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"model.dtype={self.dtype!r} is neither float32 nor bfloat16")

    @property
    def time_scale(self) -> float:
        """t in [0, 1] is stretched over the sinusoid's periods; the official network leaves it."""
        return 1.0 if self.faithful or self.smooth_times else 1000.0

    @property
    def level_scale(self) -> float:
        return 1.0 if self.faithful else 100.0

    def told_step(self, d: Scalars) -> Scalars:
        """The step size as it is embedded: as it is, or as its scaled level of the grid."""
        return d if self.smooth_times else level_of(d, self.finest_level) * self.level_scale

    @property
    def logit_scale(self) -> float:
        """Attention logits: 1/sqrt(head_dim), but 1/head_dim in the official network."""
        head_dim = self.width // self.num_heads
        return 1.0 / head_dim if self.faithful else head_dim**-0.5

    @property
    @abc.abstractmethod
    def num_patches(self) -> int:
        """Tokens of a row's data."""

    @property
    def stack_depths(self) -> tuple[int, ...]:
        """Layers of each of its stacks of blocks."""
        return (self.depth,)

    @property
    def num_tokens(self) -> int:
        """Tokens of a row, over which attention goes."""
        return self.num_patches

    @property
    @abc.abstractmethod
    def patch_values(self) -> int:
        """Values of what becomes a token."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiTConfig(TransformerConfig):
    """A DiT over patches of square images, conditioned on a label."""

    image_size: int
    num_classes: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size % self.patch_size:
            raise ValueError(
                f"model.patch_size={self.patch_size} does not divide the latents' side, "
                f"{self.image_size}"
            )

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def patch_values(self) -> int:
        return self.patch_size**2 * self.channels


def layer_norm(x: jax.Array) -> jax.Array:
    """Layer norm over the last axis without scale and bias (epsilon 1e-6), in float32."""
    if by_products():
        return _norm_by_products(x)
    y = x.astype(jnp.float32)
    mean = y.mean(-1, keepdims=True)
    # The variance as the difference of two means: both are sums of one pass over x.
    variance = jnp.maximum(jnp.square(y).mean(-1, keepdims=True) - jnp.square(mean), 0.0)
    return ((y - mean) * jax.lax.rsqrt(variance + 1e-6)).astype(x.dtype)


@jax.custom_jvp
def _norm_by_products(x: Tokens) -> Tokens:
    return _norm_and_scale(x)[0]


def _norm_and_scale(x: Tokens) -> tuple[Tokens, Float[Array, "B N 1"]]:
    """The norm, and what x was scaled by."""
    width = x.shape[-1]
    mean = over_width(x)[..., None] / width
    variance = over_width(jnp.square(x))[..., None] / width - jnp.square(mean)
    mean, scale = keep(mean), keep(jax.lax.rsqrt(jnp.maximum(variance, 0.0) + 1e-6))
    return ((x.astype(jnp.float32) - mean) * scale).astype(x.dtype), scale


@_norm_by_products.defjvp
def _norm_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    y, scale = _norm_and_scale(*primals)

    def moved(fixed: tuple[jax.Array, jax.Array], change: jax.Array) -> jax.Array:
        y, scale = fixed
        along, across = (over_width(part)[..., None] / y.shape[-1] for part in (change * y, change))
        return ((change - across - y * along) * scale).astype(change.dtype)

    # The derivative is a symmetric matrix.
    return y, linear_call(moved, moved, (y, scale), *tangents)


def modulate(x: Tokens, shift: Vectors, scale: Vectors) -> Tokens:
    """x scaled by 1 + scale and shifted."""
    return x * (1 + to_tokens(scale, x)) + to_tokens(shift, x)


class Block(nnx.Module):
    """A DiT block: attention and MLP, each modulated and gated by the condition (adaLN)."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        width, heads = config.width, config.num_heads
        head_dim = width // heads
        xavier = nnx.initializers.xavier_uniform()
        # The three square matrices are initialised as themselves, not as one [D, 3D] matrix.
        xavier_qkv = nnx.initializers.variance_scaling(2.0, "fan_avg", "uniform")
        # adaLN-Zero makes every block the identity at first; the official network does not.
        modulation_init = xavier if config.faithful else nnx.initializers.zeros_init()
        hidden = int(width * config.mlp_ratio)

        self.logit_scale, self.attention = config.logit_scale, config.attention
        self.modulation = nnx.LinearGeneral(
            width, (6, width), kernel_init=modulation_init, rngs=rngs
        )
        self.qkv = nnx.LinearGeneral(width, (3, heads, head_dim), kernel_init=xavier_qkv, rngs=rngs)
        self.attention_out = nnx.LinearGeneral(
            (heads, head_dim), width, axis=(-2, -1), kernel_init=xavier, rngs=rngs
        )
        self.mlp_in = nnx.Linear(width, hidden, kernel_init=xavier, rngs=rngs)
        self.mlp_out = nnx.Linear(hidden, width, kernel_init=xavier, rngs=rngs)

    def modulations(self, condition: Vectors) -> Float[Array, "layers B 6 D"]:
        """Of blocks stacked on a layer axis, by one product."""
        kernel, bias = self.modulation.kernel, self.modulation.bias
        assert bias is not None
        return jnp.einsum("bk,lksd->lbsd", condition, kernel[...]) + bias[:, None]

    def __call__(
        self,
        x: Tokens,
        condition: Vectors,
        modulation: Float[Array, "B 6 D"] | None = None,
    ) -> Tokens:
        """x after the block, under the activated condition.

        What the condition makes, `modulation`, may be there already.
        """
        modulation = self.modulation(condition) if modulation is None else place_rows(modulation)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = jnp.unstack(modulation, axis=1)

        query, key, value = linear_heads(self.qkv, modulate(layer_norm(x), shift_a, scale_a))
        attended = attention(query, key, value, scale=self.logit_scale, kind=self.attention)
        x = x + to_tokens(gate_a, x) * linear(self.attention_out, attended)

        hidden = nnx.gelu(linear(self.mlp_in, modulate(layer_norm(x), shift_m, scale_m)))
        return x + to_tokens(gate_m, x) * linear(self.mlp_out, hidden)


class FinalLayer(nnx.Module):
    """Modulated norm and the projection to patches, zero at first."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        zeros = nnx.initializers.zeros_init()
        outputs = config.patch_values * config.heads
        self.modulation = nnx.LinearGeneral(
            config.width, (2, config.width), kernel_init=zeros, rngs=rngs
        )
        self.project = nnx.Linear(config.width, outputs, kernel_init=zeros, rngs=rngs)

    def __call__(self, x: Tokens, condition: Vectors) -> Float[Array, "B N P"]:
        shift, scale = jnp.unstack(self.modulation(condition), axis=1)
        return self.project(modulate(layer_norm(x), shift, scale))


class Network(nnx.Module):
    """The modules of a DiT; `DiT` below is its functional face.

    What its tokens are made of and conditioned on stands in the first four methods.
    """

    def __init__(self, config: Any, *, rngs: nnx.Rngs):
        self.config = config
        xavier = nnx.initializers.xavier_uniform()
        self.patch_embed = nnx.Linear(
            config.patch_values, config.width, kernel_init=xavier, rngs=rngs
        )
        if config.told_time:
            self.time_embed = ScalarEmbedder(config.width, rngs=rngs)
        if not config.decoupled_depth:
            self.step_embed = ScalarEmbedder(config.width, rngs=rngs)
        self.label_embed = self.label_embedder(rngs)
        self.blocks = stacked(lambda rngs: Block(config, rngs=rngs), config.depth, rngs)
        self.final = FinalLayer(config, rngs=rngs)
        if config.conditions:
            self.condition_embed = nnx.Dict(
                {name: ScalarEmbedder(config.width, rngs=rngs) for name in config.conditions}
            )

    def label_embedder(self, rngs: nnx.Rngs) -> nnx.Module:
        """Labels -> [B, width]."""
        # One row more than classes: the last is the null label of classifier-free guidance.
        return nnx.Embed(
            self.config.num_classes + 1,
            self.config.width,
            embedding_init=nnx.initializers.normal(0.02),
            rngs=rngs,
        )

    def to_tokens(self, x: Rows) -> Float[Array, "B N {self.config.patch_values}"]:
        """The patches of x."""
        return to_patches(x, self.config.patch_size)

    def from_tokens(self, tokens: Tokens) -> Outputs:
        """Like x, with `heads` times the channels, from patch_values * heads of each token."""
        return from_patches(tokens, self.config.patch_size)

    def positions(self) -> Float[np.ndarray, "N D"]:
        """What tells the tokens apart."""
        return sincos_2d(self.config.width, self.config.image_size // self.config.patch_size)

    def __call__(
        self,
        x: Rows,
        t: Scalars,
        d: Scalars,
        labels: Labels,
        conditions: dict[str, Scalars],
    ) -> Outputs:
        config = self.config
        dtype = jnp.dtype(config.dtype)
        x, t, d, labels, conditions = place_inputs((x, t, d, labels, conditions))
        h = self.patch_embed(self.to_tokens(x).astype(dtype))
        h = (h + self.positions()).astype(dtype)

        def activated(condition: jax.Array) -> jax.Array:
            condition += self.label_embed(labels)
            for name in config.conditions:
                condition += self.condition_embed[name](conditions[name])
            return place_rows(nnx.silu(condition).astype(dtype))

        if config.decoupled_depth:
            first, last = (activated(self.time_embed(time)) for time in (t, t + d))
            ends = np.arange(config.depth) >= config.depth - config.decoupled_depth
        else:
            told = self.step_embed(config.told_step(d))
            if config.told_time:
                told = self.time_embed(t * config.time_scale) + told
            first, last, ends = activated(told), None, None
        # Where the weights of all layers are here already, one product modulates all: the largest
        # of their gradients is then scattered as one.
        modulations = self._modulations(first, last, ends) if weights_are_whole() else None

        def apply(block: Block, h: jax.Array, own: tuple[Any, Any]) -> jax.Array:
            modulation, end = own
            condition = first if last is None else jnp.where(end, last, first)
            return block(h, condition, modulation)

        h = run_stack("blocks", self.blocks, h, apply, config, (modulations, ends))
        out = self.final(h, first if last is None else last).astype(jnp.float32)
        return place_output(self.from_tokens(out))

    def _modulations(
        self, first: jax.Array, last: jax.Array | None, ends: np.ndarray | None
    ) -> jax.Array:
        """Of all blocks [layers, B, 6, D], by the condition [B, D] that each is told."""
        modulations = self.blocks.modulations(first)
        if last is None or ends is None:
            return modulations
        return jnp.where(ends[:, None, None, None], self.blocks.modulations(last), modulations)


class Transformer(Model):
    """What a DiT of latents and one of actions share: `apply`."""

    def apply(
        self,
        params: Params,
        x: Rows,
        t: Scalars,
        d: Scalars,
        labels: Labels,
        **conditions: Scalars,
    ) -> Outputs:
        """The mean velocity s(x_t, t, d, y).

        Args:
          params: from `init`, any float dtype.
          x: latents [B, H, W, C] at time t, or actions [B, horizon, A].
          t: time in [0, 1]; 0 is noise and 1 is data.
          d: step size in [0, 1]; below 2^-finest_level it counts as that.
          labels: classes, or observations; `null_label` for none.
          conditions: in [0, 1], for each name of `TransformerConfig.conditions`.

        Returns:
          Like x, float32, with C or A times as many channels as there are heads.
        """
        return self.network(params)(x, t, d, labels, conditions)


class DiT(Transformer):
    """A DiT as two pure functions, `init` and `apply`, over a nested dict of parameters."""

    Config = DiTConfig
    Network = Network

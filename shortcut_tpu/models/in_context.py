"""A DiT with conditions as tokens in its context and the blocks of language models.

RMS norms, gated MLPs (SwiGLU), rotary positions, normed queries and keys, no biases. Where an
objective asks for several outputs, each has last blocks of its own. It is the network of "Improved
Mean Flows" (iMF, arXiv 2512.02012, section 4.3) and of its official code.

Usage:
  model = InContext(InContextConfig(image_size=32, channels=4, width=768, depth=12, ...))
  v = model.apply(params, x, t, d, labels)                # [B, H, W, C] float32
"""

import dataclasses
import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from shortcut_tpu.array_types import Labels, Outputs, Rows, Scalars, Tokens
from shortcut_tpu.models.attention import attention
from shortcut_tpu.models.dit import DiTConfig, Transformer
from shortcut_tpu.models.embeddings import MAX_PERIOD, ScalarEmbedder
from shortcut_tpu.models.patches import from_patches, to_patches
from shortcut_tpu.models.placement import place_inputs, place_output
from shortcut_tpu.models.stacks import run_stack, stacked

# Tokens of each condition, in the order of the sequence; one that is not named here has as many as
# the step size. iMF's code.
LABEL_TOKENS, STEP_TOKENS = 8, 4
_CONDITION_TOKENS = {"guidance_start": 2, "guidance_end": 2}
# Of the blocks' linear layers: their standard deviation is this over the root of their inputs.
_BLOCK_GAIN = 0.32


@dataclasses.dataclass(frozen=True, kw_only=True)
class InContextConfig(DiTConfig):
    """A DiT's shapes, and how the sequence is made and split.

    Attributes:
      aux_head_depth: of an objective with several outputs, the last blocks that each has to itself.
      rotary: positions along the whole sequence, or of patches by row and column.
    """

    aux_head_depth: int = 8
    rotary: str = "sequence"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.faithful:
            raise ValueError(
                "model.faithful=True: it may be False for model.network=in_context; the official "
                "network of shortcut models is model.network=dit"
            )
        if self.shared_depth < 0:
            raise ValueError(
                f"model.in_context.aux_head_depth={self.aux_head_depth}: it may be at most "
                f"model.depth={self.depth} for an objective with {self.heads} outputs"
            )
        parts = 4 if self.rotary == "patches" else 2
        if self.width // self.num_heads % parts:
            raise ValueError(
                f"model.num_heads={self.num_heads}: model.width={self.width} must make heads of a "
                f"multiple of {parts} for rotary positions"
            )

    @property
    def token_counts(self) -> dict[str, int]:
        """Tokens of each condition by name, in the order of the sequence."""
        counts = {"label": LABEL_TOKENS}
        counts |= {name: _CONDITION_TOKENS.get(name, STEP_TOKENS) for name in self.conditions}
        if self.told_time:
            counts["time"] = STEP_TOKENS
        return counts | {"step": STEP_TOKENS}

    @property
    def num_tokens(self) -> int:
        return sum(self.token_counts.values()) + self.num_patches

    @property
    def shared_depth(self) -> int:
        """The blocks that all outputs share."""
        return self.depth - self.aux_head_depth if self.heads > 1 else self.depth

    @property
    def stack_depths(self) -> tuple[int, ...]:
        return self.shared_depth, *[self.depth - self.shared_depth] * self.heads

    def angles(self) -> Float[np.ndarray, "{self.num_tokens} pairs"]:
        """By which each pair of a head's values is rotated."""
        pairs = self.width // self.num_heads // 2
        if self.rotary == "sequence":
            return _angles(np.arange(self.num_tokens), pairs)
        row, column = np.divmod(np.arange(self.num_patches), self.image_size // self.patch_size)
        patches = np.concatenate([_angles(place, pairs // 2) for place in (row, column)], axis=1)
        # Conditions have no place in the picture.
        return np.pad(patches, ((self.num_tokens - self.num_patches, 0), (0, 0)))


def _angles(places: np.ndarray, pairs: int) -> np.ndarray:
    """[n] -> [n, pairs] float32, frequencies 1 .. 1/10000."""
    frequencies = 1.0 / MAX_PERIOD ** (np.arange(pairs, dtype=np.float32) / np.float32(pairs))
    return np.outer(places.astype(np.float32), frequencies.astype(np.float32))


def rotated(
    x: Float[Array, "B N H D"], angles: Float[np.ndarray, "N pairs"]
) -> Float[Array, "B N H D"]:
    """Neighbouring values of each head as points of a plane, turned ("RoFormer", arXiv 2104.09864).

    Args:
      x: of N tokens and H heads.
      angles: one for each pair of the D values.
    """
    cos, sin = (np.repeat(f(angles), 2, axis=-1)[:, None] for f in (np.cos, np.sin))
    first = np.arange(x.shape[-1]) % 2 == 0
    y = x.astype(jnp.float32)
    # Pairs as an axis of two values would leave a TPU's registers almost empty.
    partner = jnp.where(first, jnp.roll(y, -1, axis=-1), jnp.roll(y, 1, axis=-1))
    return (y * cos + partner * np.where(first, -sin, sin)).astype(x.dtype)


def _normal(gain: float) -> nnx.Initializer:
    """Normal of variance gain^2 over the inputs."""
    return nnx.initializers.variance_scaling(gain**2, "fan_in", "normal")


class RMSNorm(nnx.Module):
    """x over its root mean square (epsilon 1e-6, in float32), scaled; the last axis."""

    def __init__(self, width: int):
        self.scale = nnx.Param(jnp.ones(width))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + 1e-6)
        return y.astype(x.dtype) * self.scale


class Block(nnx.Module):
    """Attention and gated MLP on normed inputs, what they add scaled by vectors, zero at first."""

    def __init__(self, config: InContextConfig, *, rngs: nnx.Rngs):
        width, heads = config.width, config.num_heads
        head_dim, hidden = width // heads, int(width * config.mlp_ratio)
        linear: dict[str, Any] = {
            "use_bias": False,
            "kernel_init": _normal(_BLOCK_GAIN),
            "rngs": rngs,
        }
        self.config = config
        self.attention_norm, self.mlp_norm = RMSNorm(width), RMSNorm(width)
        self.query_norm, self.key_norm = RMSNorm(head_dim), RMSNorm(head_dim)
        self.qkv = nnx.LinearGeneral(width, (3, heads, head_dim), **linear)
        self.attention_out = nnx.LinearGeneral((heads, head_dim), width, axis=(-2, -1), **linear)
        self.gate_up = nnx.LinearGeneral(width, (2, hidden), **linear)
        self.down = nnx.Linear(hidden, width, **linear)
        self.attention_scale = nnx.Param(jnp.zeros(width))
        self.mlp_scale = nnx.Param(jnp.zeros(width))

    def __call__(self, h: Tokens) -> Tokens:
        config, angles = self.config, self.config.angles()
        query, key, value = jnp.unstack(self.qkv(self.attention_norm(h)), axis=2)
        query, key = rotated(self.query_norm(query), angles), rotated(self.key_norm(key), angles)
        scale = query.shape[-1] ** -0.5
        attended = attention(query, key, value, scale=scale, kind=config.attention)
        h = h + self.attention_out(attended) * self.attention_scale
        gate, up = jnp.unstack(self.gate_up(self.mlp_norm(h)), axis=2)
        return h + self.down(nnx.silu(gate) * up) * self.mlp_scale


class Head(nnx.Module):
    """The own blocks of one output, if it has any, and its projection to patches, zero at first."""

    def __init__(self, config: InContextConfig, *, rngs: nnx.Rngs):
        self.config, zeros = config, nnx.initializers.zeros_init()
        self.own_depth = config.depth - config.shared_depth
        if self.own_depth:
            self.blocks = stacked(lambda rngs: Block(config, rngs=rngs), self.own_depth, rngs)
        self.norm = RMSNorm(config.width)
        self.project = nnx.Linear(config.width, config.patch_values, kernel_init=zeros, rngs=rngs)

    def __call__(self, name: str, h: Tokens) -> Float[Array, "B patches values"]:
        """The patches of this output, from the whole sequence."""
        if self.own_depth:
            h = _run(f"{name}/blocks", self.blocks, h, self.config)
        return self.project(self.norm(h[:, -self.config.num_patches :]))


def _run(name: str, blocks: Block, h: Tokens, config: InContextConfig) -> Tokens:
    return run_stack(name, blocks, h, lambda block, h, _: block(h), config)


class Network(nnx.Module):
    """The modules; `InContext` below is their functional face."""

    def __init__(self, config: InContextConfig, *, rngs: nnx.Rngs):
        self.config, width = config, config.width
        xavier, unit = nnx.initializers.xavier_uniform(), _normal(1.0)
        rows = nnx.initializers.normal(1 / math.sqrt(width))
        self.patch_embed = nnx.Linear(config.patch_values, width, kernel_init=xavier, rngs=rngs)
        # One row more than classes: the last is the null label of classifier-free guidance.
        self.label_embed = nnx.Embed(config.num_classes + 1, width, embedding_init=rows, rngs=rngs)
        counts = config.token_counts
        self.scalar_embed = nnx.Dict(
            {
                name: ScalarEmbedder(width, kernel_init=unit, rngs=rngs)
                for name in counts
                if name != "label"
            }
        )
        self.tokens = nnx.Dict(
            {name: nnx.Param(rows(rngs.params(), (count, width))) for name, count in counts.items()}
        )
        if config.shared_depth:
            self.shared_blocks = stacked(
                lambda rngs: Block(config, rngs=rngs), config.shared_depth, rngs
            )
        self.heads = nnx.Dict(
            {f"head_{index}": Head(config, rngs=rngs) for index in range(config.heads)}
        )

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
        told = conditions | {"time": t * config.time_scale, "step": config.told_step(d)}
        embedded = {name: embed(told[name]) for name, embed in self.scalar_embed.items()}
        embedded["label"] = self.label_embed(labels)
        # Tokens of a condition are its embedding, added to vectors that tell them apart.
        context = [self.tokens[name] + embedded[name][:, None] for name in config.token_counts]
        patches = self.patch_embed(to_patches(x, config.patch_size).astype(dtype))
        h = jnp.concatenate([*context, patches], axis=1).astype(dtype)
        if config.shared_depth:
            h = _run("shared_blocks", self.shared_blocks, h, config)
        outputs = [head(f"heads/{name}", h) for name, head in self.heads.items()]
        images = [from_patches(out.astype(jnp.float32), config.patch_size) for out in outputs]
        return place_output(jnp.concatenate(images, axis=-1))


class InContext(Transformer):
    """The network as two pure functions, `init` and `apply`, over a nested dict of parameters."""

    Config = InContextConfig
    Network = Network

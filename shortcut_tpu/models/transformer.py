"""Transformer blocks without time, for the networks that generate in one step.

Usage:
  stack = stacked_blocks(config, depth=6, mlp_ratio=4.0, rngs=rngs)
  h = run_blocks("blocks", stack, h, extra, config)     # h [B, N, D]
"""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from shortcut_tpu.array_types import Tokens
from shortcut_tpu.models.attention import attention
from shortcut_tpu.models.dit import DiTConfig, layer_norm
from shortcut_tpu.models.stacks import run_stack, stacked


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dropout:
    """Leaves out a share `rate` of activations while training; what is kept makes up for them.

    `key` is a scalar, or has a layer axis where the blocks of a stack have each its own.
    """

    key: jax.Array
    rate: float = dataclasses.field(metadata={"static": True})

    def __call__(self, h: jax.Array) -> jax.Array:
        kept = jax.random.bernoulli(self.key, 1 - self.rate, h.shape)
        return jnp.where(kept, h / (1 - self.rate), 0).astype(h.dtype)

    def split(self, num: int) -> "Dropout":
        """Independent ones, stacked."""
        return Dropout(jax.random.split(self.key, num), self.rate)


class Block(nnx.Module):
    """Attention and MLP, each on normed inputs; something may be added to queries, keys, values.

    The norms have no scale and bias of their own: the products behind them have both.
    """

    def __init__(self, config: DiTConfig, mlp_ratio: float, *, rngs: nnx.Rngs):
        width, num_heads = config.width, config.num_heads
        head_dim, hidden = width // num_heads, int(width * mlp_ratio)
        xavier = nnx.initializers.xavier_uniform()
        # The three square matrices are initialised as themselves, not as one [D, 3D] matrix.
        xavier_qkv = nnx.initializers.variance_scaling(2.0, "fan_avg", "uniform")
        self.logit_scale, self.attention = head_dim**-0.5, config.attention
        self.qkv = nnx.LinearGeneral(
            width, (3, num_heads, head_dim), kernel_init=xavier_qkv, rngs=rngs
        )
        self.attention_out = nnx.LinearGeneral(
            (num_heads, head_dim), width, axis=(-2, -1), kernel_init=xavier, rngs=rngs
        )
        self.mlp_in = nnx.Linear(width, hidden, kernel_init=xavier, rngs=rngs)
        self.mlp_out = nnx.Linear(hidden, width, kernel_init=xavier, rngs=rngs)

    def __call__(
        self,
        h: Tokens,
        extra: Float[Array, "B ... 3 heads head_dim"] | None = None,
        dropout: Dropout | None = None,
    ) -> Tokens:
        """h after the block; `extra`, by token or for all, is added to queries, keys and values."""
        qkv = self.qkv(layer_norm(h))
        if extra is not None:
            qkv = qkv + extra
        query, key, value = jnp.unstack(qkv, axis=2)
        attended = attention(query, key, value, scale=self.logit_scale, kind=self.attention)
        h = h + self.attention_out(attended)
        hidden = nnx.gelu(self.mlp_in(layer_norm(h)), approximate=False)
        return h + self.mlp_out(hidden if dropout is None else dropout(hidden))


def stacked_blocks(config: DiTConfig, depth: int, mlp_ratio: float, *, rngs: nnx.Rngs) -> Block:
    """`depth` blocks of a config's width as one, their weights on a leading layer axis."""
    return stacked(lambda rngs: Block(config, mlp_ratio, rngs=rngs), depth, rngs)


def run_blocks(
    name: str,
    stack: Block,
    h: Tokens,
    extra: Float[Array, "layers B ... 3 heads head_dim"] | None,
    config: DiTConfig,
    dropout: Dropout | None = None,
) -> Tokens:
    """The blocks of a stack one after the other, as one scan.

    Args:
      name: where the stack's weights stand among the network's.
      stack: from `stacked_blocks`.
      h: what the first block takes.
      extra: added to the queries, keys and values of
        each block; the layer axis may be 1, for the same in all.
      config: of the network.
      dropout: of the hidden activations of each MLP.
    """
    depth = jax.tree.leaves(nnx.state(stack))[0].shape[0]
    if extra is not None:
        extra = jnp.broadcast_to(extra, (depth, *extra.shape[1:]))
    each = (extra, None if dropout is None else dropout.split(depth))
    return run_stack(name, stack, h, lambda block, h, own: block(h, *own), config, each)

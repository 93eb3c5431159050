"""Linear layers of blocks, as their backward pass wants them.

Usage:
  y = linear(self.mlp_in, x)                                # [B, N, D] -> [B, N, hidden]
  query, key, value = linear_heads(self.qkv, x)             # [B, N, heads, width]
"""

from flax import nnx
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
from jaxtyping import Array, Float

from shortcut_tpu.array_types import Tokens
from shortcut_tpu.models.sums import by_products, to_rows

# What `jax.checkpoint` knows by name: the results of layers, with their bias.
KEPT = "kept"


def keep(x: jax.Array) -> jax.Array:
    """x, which a backward pass that recomputes finds in memory."""
    return checkpoint_name(x, KEPT)


def linear(
    layer: nnx.Linear | nnx.LinearGeneral, x: Float[Array, "B N ..."]
) -> Float[Array, "B N outputs"]:
    """x through a layer with a bias and one axis of outputs."""
    assert layer.bias is not None
    inputs = x.reshape(*x.shape[:2], -1)
    kernel, bias = layer.kernel[...], layer.bias[...]
    return _affine(inputs, kernel.reshape(inputs.shape[-1], -1), bias)


def linear_heads(layer: nnx.LinearGeneral, x: Tokens) -> tuple[Float[Array, "B N H width"], ...]:
    """Queries, keys and values by a layer whose outputs are [3, H, width].

    Products and what is kept have the heads side by side, which fill the lanes of a TPU's registers
    that a head of 72 leaves empty. There each of the three has a product of its own, whose
    gradients need not be joined.
    """
    assert layer.bias is not None
    kernel, bias = layer.kernel[...], layer.bias[...]
    parts, heads, width = bias.shape
    matrix, vector = kernel.reshape(-1, parts, heads * width), bias.reshape(parts, heads * width)
    if by_products():
        pairs = zip(jnp.unstack(matrix, axis=1), jnp.unstack(vector), strict=True)
        results = tuple(_affine(x, *pair) for pair in pairs)
    else:
        results = jnp.unstack(_affine(x, matrix, vector), axis=2)
    return tuple(y.reshape(*y.shape[:2], heads, width) for y in results)


def _affine(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    y = jnp.tensordot(x, kernel, 1)
    return keep(y + to_rows(bias, y))

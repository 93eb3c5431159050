"""TPU attention that never stores the [tokens, tokens] logits, with both derivatives.

Forward and backward are JAX's splash attention. Its own derivative rule is for reverse mode only,
so this one states a rule for forward mode, whose tangent comes from a kernel of ours and whose
transpose is splash attention's backward pass. Both modes then work under scan, remat and shard_map.

Usage:
  out = flash_attention(q, k, v, interpret=False)      # [B, H, N, D], q scaled already
"""

import functools

import jax
from jax.custom_derivatives import linear_call
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas.ops.tpu import splash_attention
import jax.numpy as jnp
from jaxtyping import Array, Float

# Tokens in a tile come in whole registers.
LANES = 128
# What `jax.checkpoint` knows the result by, and the sums that its backward pass needs.
ATTENDED = "attended"


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def flash_attention(
    q: Float[Array, "B H N D"],
    k: Float[Array, "B H N D"],
    v: Float[Array, "B H N D"],
    interpret: bool,
) -> Float[Array, "B H N D"]:
    """softmax(q k^T) v.

    Args:
      q: the scale of the logits in it.
      k: of N tokens, a multiple of LANES.
      v: of the same tokens.
      interpret: run the kernels step by step on any platform, for tests.

    Returns:
      An array in q's dtype.
    """
    return _splash(q, k, v, interpret)


@flash_attention.defjvp
def _flash_attention_jvp(
    interpret: bool,
    primals: tuple[jax.Array, jax.Array, jax.Array],
    tangents: tuple[jax.Array, jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array]:
    out, pullback = jax.vjp(functools.partial(_splash, interpret=interpret), *primals)
    tangent = linear_call(
        lambda fixed, moves: _tangent(*fixed[0], *moves, interpret=interpret),
        lambda fixed, cotangent: fixed[1](cotangent),
        (primals, pullback),
        tangents,
    )
    return out, tangent


def _splash(q: jax.Array, k: jax.Array, v: jax.Array, interpret: bool) -> jax.Array:
    heads, tokens = q.shape[1:3]
    tile, computed = _block(tokens, 1024), _block(_block(tokens, 1024), 512)
    kernel = splash_attention.make_splash_mha_single_device(
        splash_attention.MultiHeadMask([splash_attention.FullMask((tokens, tokens))] * heads),
        block_sizes=splash_attention.BlockSizes(
            block_q=tile,
            block_kv=tile,
            block_kv_compute=computed,
            block_q_dkv=tile,
            block_kv_dkv=tile,
            block_kv_dkv_compute=computed,
            use_fused_bwd_kernel=True,
        ),
        residual_checkpoint_name=ATTENDED,
        interpret=interpret,
    )
    return jax.vmap(kernel)(q, k, v)


def _block(tokens: int, limit: int) -> int:
    """The largest tile of whole registers, at most `limit`, that divides the tokens."""
    return max(n for n in range(LANES, limit + 1, LANES) if tokens % n == 0)


def _tangent(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    dq: jax.Array,
    dk: jax.Array,
    dv: jax.Array,
    *,
    interpret: bool,
) -> jax.Array:
    """The change [B, H, N, D] of softmax(q k^T) v when q, k and v change by dq, dk and dv.

    With weights P = softmax(S) and logits that change by C = dq k^T + q dk^T it is

        (P * C) v + P dv - rowsum(P * C) (P v).

    Each term is a sum over keys, taken tile by tile as the output is in FlashAttention (arXiv
    2205.14135, algorithm 1): relative to the largest logit so far, rescaled when that grows.
    """
    batch, heads, tokens, width = q.shape
    block_q, block_kv = _block(tokens, 256), _block(tokens, 1024)
    rows = pl.BlockSpec((None, None, block_q, width), lambda b, h, i, j: (b, h, i, 0))
    keys = pl.BlockSpec((None, None, block_kv, width), lambda b, h, i, j: (b, h, j, 0))
    column = pltpu.VMEM((block_q, 1), jnp.float32)
    wide = pltpu.VMEM((block_q, width), jnp.float32)
    return pl.pallas_call(
        _tangent_kernel,
        grid=(batch, heads, tokens // block_q, tokens // block_kv),
        in_specs=[rows, keys, keys, rows, keys, keys],
        out_specs=rows,
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        scratch_shapes=[column, column, column, wide, wide],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")
        ),
        interpret=interpret,
        name="attention_tangent",
    )(q, k, v, dq, dk, dv)


def _tangent_kernel(q, k, v, dq, dk, dv, tangent, largest, total, centre, out, moved):
    @pl.when(pl.program_id(3) == 0)
    def _():
        largest[...] = jnp.full_like(largest, -jnp.inf)
        for sums in (total, centre, out, moved):
            sums[...] = jnp.zeros_like(sums)

    logits = _product(q[...], k[...].T)
    peak = jnp.maximum(largest[...], logits.max(axis=1, keepdims=True))
    rescale = jnp.exp(largest[...] - peak)
    weights = jnp.exp(logits - peak)
    changes = weights * (_product(dq[...], k[...].T) + _product(q[...], dk[...].T))
    rounded = weights.astype(v.dtype)

    largest[...] = peak
    total[...] = rescale * total[...] + weights.sum(axis=1, keepdims=True)
    centre[...] = rescale * centre[...] + changes.sum(axis=1, keepdims=True)
    out[...] = rescale * out[...] + _product(rounded, v[...])
    moved[...] = (
        rescale * moved[...]
        + _product(changes.astype(v.dtype), v[...])
        + _product(rounded, dv[...])
    )

    @pl.when(pl.program_id(3) == pl.num_programs(3) - 1)
    def _():
        change = (moved[...] - centre[...] / total[...] * out[...]) / total[...]
        tangent[...] = change.astype(tangent.dtype)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.dot(a, b, preferred_element_type=jnp.float32)

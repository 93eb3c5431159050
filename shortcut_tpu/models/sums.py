"""Sums over tokens, rows and widths, and what they are the transposes of, by the best unit.

A TPU's vector unit takes long to add along an axis; its matrix unit does it as a product with ones,
most of it beside other work. Elsewhere a sum is a sum.

Usage:
  y = x * to_tokens(scale, x)                 # [B, D] -> [B, N, D]; its gradient is a product
  y = y + to_rows(bias, y)                    # [...] -> [B, N, ...]
  mean = over_width(x) / x.shape[-1]          # [B, N, D] -> [B, N]
"""

from collections.abc import Callable
import functools

import jax
from jax.custom_derivatives import linear_call
import jax.numpy as jnp
from jaxtyping import Array, Float

from shortcut_tpu.array_types import Tokens, Vectors
from shortcut_tpu.models.placement import platform

# What a program calls such a product, for those who count its operations.
SUM_BY_PRODUCTS = "sum_by_products"
Sum = Callable[[jax.Array], jax.Array]

# A product with one column of ones is turned into a sum again by the compiler.
_COLUMNS = 8


def by_products() -> bool:
    """Whether what is traced now is for a device that sums by products."""
    return platform() == "tpu"


def over_width(x: Tokens) -> Float[Array, "B N"]:
    """The sums of all tokens' values, in float32."""
    return sum_by_products("bnd,dk->bnk", x, (x.shape[-1], _COLUMNS))[..., 0]


def to_tokens(row: Vectors, like: Float[Array, "B N ..."]) -> Float[Array, "B _ D"]:
    """The same for all tokens of `like`, to be broadcast where a platform does that well."""
    row = row[:, None]
    return _spread(row, (1, like.shape[1], 1), _over_tokens) if by_products() else row


def to_rows(
    vector: Float[Array, "*outputs"], like: Float[Array, "B N *outputs"]
) -> Float[Array, "_ _ *outputs"]:
    """The same for all rows and tokens of `like`, to be broadcast where a platform does that."""
    vector = vector[None, None]
    times = (*like.shape[:2], *[1] * (like.ndim - 2))
    return _spread(vector, times, _over_rows) if by_products() else vector


def _over_tokens(x: jax.Array) -> jax.Array:
    sums = sum_by_products("bnd,nk->bkd", x, (x.shape[1], _COLUMNS))
    return sums[:, :1].astype(x.dtype)


def _over_rows(x: jax.Array) -> jax.Array:
    sums = sum_by_products("bn...,bnk->k...", x, (*x.shape[:2], _COLUMNS))
    return sums[None, :1].astype(x.dtype)


@functools.partial(jax.jit, static_argnums=(0, 2))
def sum_by_products(subscripts: str, x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """x times ones of a shape, in float32."""
    return jnp.einsum(
        subscripts,
        x,
        jnp.ones(shape, x.dtype),
        # Of bfloat16 the products are exact in one pass.
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _spread(x: jax.Array, times: tuple[int, ...], back: Sum) -> jax.Array:
    """x repeated along axes of length 1; the sum `back` over these axes is its transpose."""
    return jnp.broadcast_to(x, [n * m for n, m in zip(x.shape, times, strict=True)])


@_spread.defjvp
def _spread_jvp(
    times: tuple[int, ...], back: Sum, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    change = linear_call(
        lambda _, tangent: _spread(tangent, times, back),
        lambda _, cotangent: back(cotangent),
        (),
        *tangents,
    )
    return _spread(*primals, times, back), change

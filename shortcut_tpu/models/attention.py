"""Attention over all tokens, by XLA or by a TPU kernel.

Usage:
  attended = attention(query, key, value, kind="auto")     # [B, N, H, D]
"""

import functools

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from shortcut_tpu.models.flash_attention import ATTENDED, LANES, flash_attention
from shortcut_tpu.models.placement import place_heads, platform

KINDS = ("auto", "xla", "pallas")
# From so many tokens on `auto` takes the kernel.
MIN_TOKENS = 1024


def attention(
    query: Float[Array, "B N H D"],
    key: Float[Array, "B N H D"],
    value: Float[Array, "B N H D"],
    *,
    scale: float,
    kind: str = "auto",
) -> Float[Array, "B N H D"]:
    """softmax(scale query key^T) value for each row and head.

    Args:
      query: of N tokens and H heads.
      key: of the same tokens.
      value: of the same tokens.
      scale: of the logits.
      kind: one of KINDS; where nobody has placed the network, `xla` always. `pallas` off a TPU is
        interpreted, for tests: slow.

    Returns:
      What `jax.checkpoint` knows as ATTENDED. Both ways have reverse-mode
      derivatives and first forward-mode ones.
    """
    if not _by_kernel(kind, query.shape[1]):
        attended = jax.nn.dot_product_attention(query, key, value, scale=scale)
        return checkpoint_name(attended, ATTENDED)
    kernel = functools.partial(flash_attention, interpret=platform() != "tpu")
    heads_first = (a.swapaxes(1, 2) for a in (query * scale, key, value))
    return place_heads(kernel, *heads_first).swapaxes(1, 2)


def _by_kernel(kind: str, tokens: int) -> bool:
    if kind == "auto":
        return platform() == "tpu" and tokens >= MIN_TOKENS and tokens % LANES == 0
    return kind == "pallas" and platform() is not None


def check_attention(kind: str, tokens: int) -> None:
    """Refuses what `attention` cannot do.

    Raises:
      ValueError: there is no such kind, or the kernel's tiles do not divide the tokens.
    """
    if kind not in KINDS:
        raise ValueError(f"model.attention={kind!r} is none of {', '.join(KINDS)}")
    if kind == "pallas" and tokens % LANES:
        raise ValueError(
            f"model.attention=pallas needs a multiple of {LANES} tokens and these are {tokens}: "
            "take auto"
        )

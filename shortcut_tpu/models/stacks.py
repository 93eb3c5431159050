"""Blocks of one kind, their weights stacked on a leading layer axis, run as one scan.

So compile time does not grow with depth.

Usage:
  blocks = stacked(lambda rngs: Block(config, rngs=rngs), depth=12, rngs=rngs)
  h = run_stack("blocks", blocks, h, lambda block, h, _: block(h), config)
"""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from flax import nnx
import jax

from shortcut_tpu.array_types import Tokens
from shortcut_tpu.models.flash_attention import ATTENDED
from shortcut_tpu.models.linear import KEPT
from shortcut_tpu.models.placement import place_rows, place_weights, platform

Block = TypeVar("Block", bound=nnx.Module)

# What the backward pass finds in memory; with "dots" it recomputes what lies between the products
# and, of attention, the weights.
REMAT_POLICIES = {
    "none": None,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(ATTENDED, KEPT),
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Scan(Protocol):
    """How the blocks of a stack are run; a network's config says it.

    Attributes:
      remat: a name of `REMAT_POLICIES`.
      unroll: layers that each turn computes, as `layers_a_turn` takes it.
    """

    @property
    def remat(self) -> str: ...

    @property
    def unroll(self) -> int: ...


def layers_a_turn(unroll: int, depth: int) -> int:
    """How many of `depth` layers each turn of their scan computes, where -1 goes by the platform.

    A TPU's compiler takes a scan as it is; a GPU's step takes a quarter longer for one. A CPU's
    compiler, where layers are written out, computes the residual stream's gradient anew for each
    product that needs it, from all layers behind.
    """
    if unroll != -1:
        return unroll
    return depth if platform() == "gpu" else 1


def stacked(make: Callable[[nnx.Rngs], Block], depth: int, rngs: nnx.Rngs) -> Block:
    """`depth` blocks as one."""

    @nnx.split_rngs(splits=depth)
    @nnx.vmap(in_axes=0, out_axes=0)
    def stack(rngs: nnx.Rngs) -> Block:
        return make(rngs)

    return stack(rngs)


def run_stack(
    name: str,
    stack: Block,
    h: Tokens,
    apply: Callable[[Block, jax.Array, Any], jax.Array],
    config: Scan,
    each: Any = None,
) -> Tokens:
    """The blocks of a stack one after the other.

    Args:
      name: where the stack's weights stand among the network's; it decides where they lie.
      stack: from `stacked`.
      h: what the first block takes.
      apply: block, h, what belongs to this block of `each` -> h.
      config: the network's, for how the scan goes.
      each: a pytree of arrays with a leading layer axis, or None.
    """
    graph, stacked_weights = nnx.split(stack)
    depth = jax.tree.leaves(stacked_weights)[0].shape[0]

    def layer(h: jax.Array, turn: tuple[nnx.State, Any]) -> tuple[jax.Array, None]:
        weights, own = turn
        block = nnx.merge(graph, place_weights(name, weights))
        return apply(block, place_rows(h), own), None

    if config.remat != "none":
        layer = jax.checkpoint(layer, policy=REMAT_POLICIES[config.remat], prevent_cse=False)
    unroll = layers_a_turn(config.unroll, depth)
    h, _ = jax.lax.scan(layer, place_rows(h), (stacked_weights, each), unroll=unroll)
    return place_rows(h)

"""Counts a function's floating-point operations from its shapes.

Every matrix product that JAX would run is counted, those of derivatives, of recomputation and of
Pallas kernels included, a scan's as often as it turns. Nothing is compiled, and no compiler's
estimate is trusted.

Usage:
  flops = count_flops(jax.value_and_grad(loss), abstract_params, abstract_batch)
"""

from collections.abc import Callable, Iterator, Sequence, Set
import math
from typing import Any, NamedTuple

import jax

from shortcut_tpu.models.sums import SUM_BY_PRODUCTS


def count_flops(function: Callable[..., Any], *args: Any) -> int:
    """Operations in matrix products, two for each multiplication and addition.

    Sums that a TPU takes as products with ones do not count. Of a conditional the dearest branch
    does.

    Args:
      function: traced, not run.
      *args: its arguments or their ShapeDtypeStructs.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        if equation.params.get("name") == SUM_BY_PRODUCTS:
            continue
        inner = [_count(sub) for sub in sub_jaxprs(equation.params)]
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            depth = math.prod(left[axis] for axis in contracted)
            total += 2 * depth * math.prod(equation.outvars[0].aval.shape)
        elif equation.primitive.name == "scan":
            total += equation.params["length"] * sum(inner)
        elif equation.primitive.name == "cond":
            total += max(inner)
        elif equation.primitive.name == "pallas_call":
            total += math.prod(equation.params["grid_mapping"].grid) * sum(inner)
        elif equation.primitive.name == "shard_map":
            total += _shards(equation.params) * sum(inner)
        else:
            total += sum(inner)
    return total


def _shards(params: dict[str, Any]) -> int:
    """Devices that compute different parts of what a shard_map makes."""
    axes = {
        axis
        for spec in params["in_specs"]
        for part in spec
        for axis in (part if isinstance(part, tuple) else (part,))
    }
    return math.prod(params["mesh"].shape[axis] for axis in axes - {None})


class Kernel(NamedTuple):
    """What tells a Pallas kernel from others: its name and its operands' dimensions."""

    name: str
    operands: tuple[tuple[int, ...], ...]


def kernel_flops(function: Callable[..., Any], *args: Any) -> dict[Kernel, int]:
    """Operations of each Pallas kernel of a function, of one execution on one device.

    A compiled program holds kernels as machine code that tells nothing of its operations.

    Args:
      function: traced, not run.
      *args: its arguments or their ShapeDtypeStructs.
    """
    return dict(_kernels(jax.make_jaxpr(function)(*args).jaxpr))


def _kernels(jaxpr: Any) -> Iterator[tuple[Kernel, int]]:
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            operands = tuple(operand.aval.shape for operand in equation.invars)
            grid = math.prod(equation.params["grid_mapping"].grid)
            flops = grid * _count(equation.params["jaxpr"])
            yield Kernel(equation.params["name"], operands), flops
        else:
            for sub in sub_jaxprs(equation.params):
                yield from _kernels(sub)


def layer_passes(depths: Sequence[int], function: Callable[..., Any], *args: Any) -> float:
    """How often a function passes through a network's layers, forwards or backwards.

    Args:
      depths: layers of each of its stacks; a scan of so many turns that multiplies matrices is a
        pass through that one, and so the stack's share of a pass.
      function: traced, not run.
      *args: its arguments or their ShapeDtypeStructs.
    """
    layers = _layers(jax.make_jaxpr(function)(*args).jaxpr, set(depths))
    return layers / sum(depths)


def _layers(jaxpr: Any, depths: Set[int]) -> int:
    total = 0
    for equation in jaxpr.eqns:
        subs = list(sub_jaxprs(equation.params))
        turns = equation.params["length"] if equation.primitive.name == "scan" else 1
        within = sum(_layers(sub, depths) for sub in subs)
        # A scan over parts of a batch may have as many turns as there are layers.
        is_stack = equation.primitive.name == "scan" and turns in depths and not within
        total += turns * (any(_count(sub) for sub in subs) if is_stack else within)
    return total


def sub_jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    """What an equation of a program holds of other programs."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(item, "jaxpr", item)
            if hasattr(inner, "eqns"):
                yield inner

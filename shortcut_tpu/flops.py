"""Floating-point operations of a function, counted from its shapes.

Every matrix product that JAX would run is counted, those of derivatives and of recomputation
included, a scan's as often as it turns. Nothing is compiled, and no compiler's estimate is trusted.

Usage:
  flops = count_flops(jax.value_and_grad(loss), abstract_params, abstract_batch)
"""

from collections.abc import Callable, Iterator
import math
from typing import Any

import jax


def count_flops(function: Callable[..., Any], *args: Any) -> int:
    """Operations in matrix products, two for each multiplication and addition.

    Of a conditional the dearest branch counts.

    Args:
      function: traced, not run.
      *args: its arguments or their ShapeDtypeStructs.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        inner = [_count(sub) for sub in _sub_jaxprs(equation.params)]
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            depth = math.prod(left[axis] for axis in contracted)
            total += 2 * depth * math.prod(equation.outvars[0].aval.shape)
        elif equation.primitive.name == "scan":
            total += equation.params["length"] * sum(inner)
        elif equation.primitive.name == "cond":
            total += max(inner)
        else:
            total += sum(inner)
    return total


def layer_passes(depth: int, function: Callable[..., Any], *args: Any) -> int:
    """How often a function passes through a network's layers, forwards or backwards.

    Args:
      depth: layers; every scan of so many turns that multiplies matrices is a pass.
      function: traced, not run.
      *args: its arguments or their ShapeDtypeStructs.
    """
    return _passes(jax.make_jaxpr(function)(*args).jaxpr, depth)


def _passes(jaxpr: Any, depth: int) -> int:
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan" and equation.params["length"] == depth:
            total += any(_count(sub) for sub in _sub_jaxprs(equation.params))
            continue
        turns = equation.params["length"] if equation.primitive.name == "scan" else 1
        total += turns * sum(_passes(sub, depth) for sub in _sub_jaxprs(equation.params))
    return total


def _sub_jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(item, "jaxpr", item)
            if hasattr(inner, "eqns"):
                yield inner

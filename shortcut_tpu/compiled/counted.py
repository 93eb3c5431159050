"""Bounds a program's memory on a chip from its shapes, where compiling would take too long.

A TPU's compiler takes a second or more for each bfloat16 pass of each convolution, and one in
float32 has six: a decoder or a feature network is a quarter of an hour on two cores.

Usage:
  found = count(decode, weights, latents)      # arguments of one chip
  print(found.live_bytes, found.flops)
"""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

import jax

from shortcut_tpu.training.flops import sub_jaxprs

# bfloat16 passes of a product of float32 numbers, by the precision that is asked for.
_PASSES = {jax.lax.Precision.DEFAULT: 1, jax.lax.Precision.HIGH: 3, jax.lax.Precision.HIGHEST: 6}


@dataclasses.dataclass(frozen=True)
class Counted:
    """Figures of a function, run operation by operation.

    Attributes:
      live_bytes: of all arrays that are there at once, at the most, arguments not among them.
      flops: operations in bfloat16 products and convolutions.
    """

    live_bytes: int
    flops: int


def count(function: Callable[..., Any], *args: Any) -> Counted:
    """Counts a function; a compiler, which fuses operations, needs less memory.

    Args:
      function: traced, not run.
      *args: its arguments or their ShapeDtypeStructs.
    """
    closed = jax.make_jaxpr(function)(*args)
    return _count(closed.jaxpr)


def _count(jaxpr: Any) -> Counted:
    last: dict[Any, int] = {}
    for place, equation in enumerate(jaxpr.eqns):
        last.update({id(operand): place for operand in equation.invars})
    results = {id(result) for result in jaxpr.outvars}
    live, most, flops = 0, 0, 0
    made: dict[int, int] = {}
    for place, equation in enumerate(jaxpr.eqns):
        inner = [_count(sub) for sub in sub_jaxprs(equation.params)]
        for result in equation.outvars:
            made[id(result)] = math.prod(result.aval.shape) * result.aval.dtype.itemsize
            live += made[id(result)]
        most = max(most, live + max((found.live_bytes for found in inner), default=0))
        turns = equation.params["length"] if equation.primitive.name == "scan" else 1
        flops += _products(equation) + turns * sum(found.flops for found in inner)
        for operand in {id(operand) for operand in (*equation.invars, *equation.outvars)}:
            if last.get(operand, -1) <= place and operand not in results:
                live -= made.pop(operand, 0)
    return Counted(most, flops)


def _products(equation: Any) -> int:
    name = equation.primitive.name
    if name not in ("dot_general", "conv_general_dilated"):
        return 0
    left, right = (operand.aval.shape for operand in equation.invars[:2])
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        depth = math.prod(left[axis] for axis in contracted)
    else:
        depth = math.prod(right) // right[equation.params["dimension_numbers"].rhs_spec[0]]
    asked = equation.params["precision"]
    precision = asked[0] if isinstance(asked, tuple) else asked
    passes = _PASSES.get(precision, 1)
    return 2 * depth * math.prod(equation.outvars[0].aval.shape) * passes

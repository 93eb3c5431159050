"""The TPU compiler's cycles of single operations over what their shapes cost at the chips' peaks.

Products cost their operations, all else its bytes, though those of what lies badly are more than
its shape says. Nothing is run. Bars stand where an estimate can be believed, and where what it does
not know is known: docs/estimates.md says what follows.
"""

from collections.abc import Callable, Iterator
import dataclasses
import importlib.util
from typing import Any

import jax
from jax.experimental.layout import Format, Layout
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

# Imported for the environment that the compiler needs.
from shortcut_tpu import preflight  # noqa: F401
from shortcut_tpu.compiled.cycles import operations
from shortcut_tpu.compiled.hlo import Program
from shortcut_tpu.pod.topologies import Chip, Topology
from tests.benchmarks.comparison import Bar, Comparison, Options, Skipped

PODS = ("v5e-4", "v6e-4", "v5p-8", "v4-8")
SIDE = 8192
ELEMENTWISE, POLYNOMIAL = "elementwise", "ten times the arithmetic"
SLICE, BAD_SLICE = "slice of a stack", "slice of one whose layers share tiles"
# DiT-XL's: 28 layers of 1152 x 4608, 16 heads of 72 lanes over 256 tokens, eight rows.
LAYERS, WIDTH, HIDDEN, HEADS, LANES, TOKENS, ROWS = 28, 1152, 4608, 16, 72, 256, 8
_SHOWN = Bar()
_NEAR = Bar(1.0, 1.5)


@dataclasses.dataclass(frozen=True)
class Single:
    """An operation whose cost is known from its shapes.

    Attributes:
      function: of arrays of these shapes.
      flops: of its products.
      bytes: that it reads and writes.
      order: of the first argument's axes in memory, the slowest first; None for the usual one.
      bar: of the compiler's time over the larger of the two at the chip's peaks.
    """

    name: str
    function: Callable[..., jax.Array]
    shapes: tuple[tuple[int, ...], ...]
    dtype: str = "bfloat16"
    flops: int = 0
    bytes: int = 0
    order: tuple[int, ...] | None = None
    bar: Bar = _SHOWN

    def seconds(self, chip: Chip) -> float:
        """At the chip's peaks."""
        return max(self.flops / chip.bf16_flops, self.bytes / chip.hbm_bandwidth)


def singles() -> Iterator[Single]:
    """What is compiled and has a cost that is known."""
    square = (SIDE, SIDE)
    heads = (ROWS, HEADS, TOKENS, LANES)
    rows, weights = (ROWS * TOKENS, WIDTH), (WIDTH, HIDDEN)
    yield Single("product, large", jnp.matmul, (square, square), flops=2 * SIDE**3, bar=_NEAR)
    flops = 2 * ROWS * TOKENS * WIDTH * HIDDEN
    yield Single("product of a layer", jnp.matmul, (rows, weights), flops=flops)
    yield Single(
        "logits of 72 lanes",
        lambda q, k: jnp.einsum("bhnd,bhmd->bhnm", q, k),
        (heads, heads),
        flops=2 * ROWS * HEADS * TOKENS**2 * LANES,
        bytes=2 * ROWS * HEADS * TOKENS * (2 * LANES + TOKENS),
    )
    area = 4 * SIDE**2
    yield Single(ELEMENTWISE, _affine, (square,), "float32", bytes=2 * area, bar=_NEAR)
    yield Single("in bfloat16", _affine, (square,), bytes=area)
    yield Single("exponentials", jnp.exp, (square,), "float32", bytes=2 * area)
    yield Single("sum over rows", lambda x: x.sum(0), (square,), "float32", bytes=area)
    yield Single("sum along lanes", lambda x: x.sum(1), (square,), "float32", bytes=area)
    yield Single("transposing copy", lambda x: x.T.copy(), (square,), "float32", bytes=2 * area)
    for name, order in ((SLICE, None), (BAD_SLICE, (1, 0, 2))):
        yield Single(
            name,
            lambda stack, n: jax.lax.dynamic_index_in_dim(stack, n, 0, keepdims=False) * 2,
            ((LAYERS, WIDTH, HIDDEN), ()),
            bytes=4 * WIDTH * HIDDEN,
            order=order,
        )
    yield Single(POLYNOMIAL, _polynomial, (square,), "float32", bytes=2 * area, bar=_NEAR)


def _affine(x: jax.Array) -> jax.Array:
    return 2 * x + 1


def _polynomial(x: jax.Array) -> jax.Array:
    y = x
    for power in range(10):
        y = y * x + power
    return y


def cycles(single: Single, device: jax.Device, chip: Chip) -> int:
    """What the compiler takes the operation to cost."""
    sharding = SingleDeviceSharding(device)
    arguments: list[Any] = []
    for shape in single.shapes:
        where: Any = sharding
        if single.order is not None and shape:
            where = Format(Layout(single.order), sharding)
        dtype = single.dtype if shape else "int32"
        arguments.append(jax.ShapeDtypeStruct(shape, dtype, sharding=where))
    compiled = jax.jit(single.function).lower(*arguments).compile()
    found = operations(Program.parse(compiled.as_text()), chip)
    return sum(operation.total for operation in found)


def measure(options: Options) -> list[Comparison]:
    del options
    if importlib.util.find_spec("libtpu") is None:
        raise Skipped("libtpu, the TPU compiler, is not installed")
    found = []
    for pod in PODS:
        topology = Topology.parse(pod)
        device, chip = topology.devices()[0], topology.chip
        seconds: dict[str, float] = {}
        for single in singles():
            seconds[single.name] = cycles(single, device, chip) / chip.clock
            told, known = [seconds[single.name]], [single.seconds(chip)]
            name = f"{topology.generation}: {single.name}"
            found.append(Comparison(name, "s", told, known, single.bar))
        for ours, other, bar in (
            (BAD_SLICE, SLICE, Bar(low=4.0)),
            (POLYNOMIAL, ELEMENTWISE, Bar(0.95, 1.2)),
        ):
            name = f"{topology.generation}: {ours}, over the {other}"
            found.append(Comparison(name, "s", [seconds[ours]], [seconds[other]], bar))
    return found

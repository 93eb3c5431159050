"""Layers of autoencoders, with weights under torch's names.

A network is a function of `Layers` and its input, which says once what it computes and which
weights it needs.

Usage:
    def network(layers: Layers, images: jax.Array) -> jax.Array:
        return layers.at("blocks", 0).conv(images, 64)  # uses blocks.0.weight and blocks.0.bias

    shapes = shapes_of(network, (1, 8, 8, 3))           # {"blocks.0.weight": (64, 3, 3, 3), ...}
    out = run(network, weights, images)
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import contextvars
import math
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Shape = tuple[int, ...]
Weights = Mapping[str, np.ndarray | jax.Array]
Supply = Callable[[str, Shape], jax.Array]

# By default a TPU multiplies float32 in one pass of bfloat16, whose error of 2^-9 in every layer
# shows in the latents and in the FID of what is decoded.
_precision = contextvars.ContextVar("precision", default=jax.lax.Precision.HIGHEST)


@contextlib.contextmanager
def at_precision(precision: jax.lax.Precision) -> Iterator[None]:
    """Networks that are traced within multiply at this precision, HIGHEST elsewhere."""
    token = _precision.set(precision)
    try:
        yield
    finally:
        _precision.reset(token)


class Layers:
    """Layers at one place in a network; all take [n, h, w, c] float32."""

    def __init__(self, supply: Supply, place: str = ""):
        """Layers whose weights `supply` gives, by name and shape."""
        self._supply = supply
        self._place = place

    def at(self, *names: str | int) -> "Layers":
        """The layers further in, torch's way: `at("blocks", 0)` is blocks.0 of here."""
        return Layers(self._supply, "".join([self._place, *(f"{name}." for name in names)]))

    def weight(self, name: str, shape: Shape) -> jax.Array:
        """A weight of this place, for what is no layer below."""
        return self._supply(self._place + name, shape)

    def conv(
        self,
        x: jax.Array,
        outputs: int,
        *,
        size: int | tuple[int, int] = 3,
        stride: int = 1,
        padding: tuple[int, int] | None = None,
        bias: bool = True,
    ) -> jax.Array:
        """A convolution, padded with zeros (before, after); by default by half the kernel."""
        height, width = (size, size) if isinstance(size, int) else size
        halves = ((height // 2, height // 2), (width // 2, width // 2))
        out = jax.lax.conv_general_dilated(
            x,
            self.weight("weight", (outputs, x.shape[-1], height, width)),
            (stride, stride),
            (padding, padding) if padding else halves,
            dimension_numbers=("NHWC", "OIHW", "NHWC"),
            precision=_precision.get(),
        )
        return out + self.weight("bias", (outputs,)) if bias else out

    def depthwise(
        self, x: jax.Array, size: int, stride: int, padding: tuple[int, int]
    ) -> jax.Array:
        """A convolution of each channel by a kernel of its own, without a bias."""
        weight = self.weight("weight", (x.shape[-1], 1, size, size))
        padded = jnp.pad(x, ((0, 0), padding, padding, (0, 0)))
        rows, columns = (side - size + 1 for side in padded.shape[1:3])
        # A sum of shifted images: XLA's grouped convolution takes a processor seven times as long.
        shifted = (
            padded[:, i : i + rows : stride, j : j + columns : stride] * weight[:, 0, i, j]
            for i in range(size)
            for j in range(size)
        )
        return sum(shifted, jnp.zeros((), x.dtype))

    def linear(self, x: jax.Array, outputs: int, *, bias: bool = True) -> jax.Array:
        """x W^T + b over the last axis of x, of any rank."""
        weight = self.weight("weight", (outputs, x.shape[-1]))
        out = jnp.einsum("...i,oi->...o", x, weight, precision=_precision.get())
        return out + self.weight("bias", (outputs,)) if bias else out

    def batch_norm(self, x: jax.Array, epsilon: float) -> jax.Array:
        """Normalised by the running mean and variance of training, then scaled and shifted."""
        channels = (x.shape[-1],)
        mean, variance = (self.weight(f"running_{name}", channels) for name in ("mean", "var"))
        normal = (x - mean) * jax.lax.rsqrt(variance + epsilon)
        return normal * self.weight("weight", channels) + self.weight("bias", channels)

    def layer_norm(self, x: jax.Array, epsilon: float) -> jax.Array:
        """Zero mean and unit variance over the last axis of x, of any rank; scaled and shifted."""
        channels = (x.shape[-1],)
        centred = x - x.mean(-1, keepdims=True)
        normal = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + epsilon)
        return normal * self.weight("weight", channels) + self.weight("bias", channels)

    def group_norm(self, x: jax.Array, groups: int, epsilon: float) -> jax.Array:
        """Zero mean and unit variance over each group of channels, then scaled and shifted."""
        channels = x.shape[-1]
        grouped = x.reshape(x.shape[0], -1, groups, channels // groups)
        centred = grouped - grouped.mean((1, 3), keepdims=True)
        # Not the mean of squares less the square of the mean: that cancels in float32.
        variance = jnp.square(centred).mean((1, 3), keepdims=True)
        normal = (centred * jax.lax.rsqrt(variance + epsilon)).reshape(x.shape)
        return normal * self.weight("weight", (channels,)) + self.weight("bias", (channels,))


def upsample(x: jax.Array) -> jax.Array:
    """Every pixel of [n, h, w, c] twice in both directions: [n, 2h, 2w, c]."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """softmax(q k^T / sqrt(c)) v of one head over [n, pixels, c]."""
    logits = jnp.einsum("nqc,nkc->nqk", query, key, precision=_precision.get())
    weights = jax.nn.softmax(logits / math.sqrt(query.shape[-1]), axis=-1)
    return jnp.einsum("nqk,nkc->nqc", weights, value, precision=_precision.get())


Out = TypeVar("Out")
Network = Callable[[Layers, jax.Array], Out]


def run(network: Network[Out], weights: Weights, x: jax.Array) -> Out:
    """What a network computes with these weights."""
    return network(Layers(lambda name, shape: jnp.asarray(weights[name])), x)


def abstract(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Weights of these shapes that hold no numbers, to compile a network that is not here."""
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}


def shapes_of(network: Network[Out], input_shape: Shape) -> dict[str, Shape]:
    """The shapes of a network's weights by name, found without computing anything."""
    shapes: dict[str, Shape] = {}

    def note(name: str, shape: Shape) -> jax.Array:
        shapes[name] = shape
        return jnp.zeros(shape)

    jax.eval_shape(
        lambda x: network(Layers(note), x), jax.ShapeDtypeStruct(input_shape, jnp.float32)
    )
    return shapes

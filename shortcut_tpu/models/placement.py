"""Lets a mesh place a network's activations and weights; networks do not know the mesh.

Left alone the compiler also splits activations along their width, which moves them between devices
in every layer. A step that is compiled for a mesh is traced under `placed`, and the networks ask
here at each layer; without it nothing is constrained.

Usage, in a network:
  params = place_params(params)                        # once, cast to the dtype of the products
  weights = place_weights("blocks", weights)           # in each layer
  x, t = place_inputs((x, t))                          # where it begins
  h = place_rows(h)                                    # in each layer
  attended = place_heads(kernel, q, k, v)              # what the compiler cannot split
  return place_output(out)
"""

from collections.abc import Callable, Iterator
import contextlib
import contextvars
from typing import Any, Protocol

import jax


class Placement(Protocol):
    @property
    def platform(self) -> str:
        """What is compiled for, such as "tpu": it need not be where it is compiled."""
        ...

    @property
    def whole(self) -> bool:
        """Whether weights that lie in parts are gathered for all layers before the first."""
        ...

    def heads(self, function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
        """function(*arrays) on arrays [B, H, ...], each device computing its rows and heads."""
        ...

    def inputs(self, arrays: Any) -> Any:
        """What a pass through the network takes, each [B, ...]."""
        ...

    def output(self, x: jax.Array) -> jax.Array:
        """What a pass through the network gives, [B, ...]."""
        ...

    def rows(self, x: jax.Array) -> jax.Array:
        """The array [B, ...], each device holding whole rows."""
        ...

    def params(self, params: Any) -> Any:
        """All weights, as a pass through the network wants them before its layers."""
        ...

    def weights(self, module: str, weights: Any) -> Any:
        """The weights of one layer of a module, as its products need them."""
        ...


_active = contextvars.ContextVar[Placement | None]("placement", default=None)


@contextlib.contextmanager
def placed(placement: Placement) -> Iterator[None]:
    """What is traced within asks this placement."""
    token = _active.set(placement)
    try:
        yield
    finally:
        _active.reset(token)


def place_inputs(arrays: Any) -> Any:
    """See `Placement.inputs`."""
    placement = _active.get()
    return placement.inputs(arrays) if placement else arrays


def place_output(x: jax.Array) -> jax.Array:
    """See `Placement.output`."""
    placement = _active.get()
    return placement.output(x) if placement else x


def place_rows(x: jax.Array) -> jax.Array:
    """See `Placement.rows`."""
    placement = _active.get()
    return placement.rows(x) if placement else x


def place_heads(function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """See `Placement.heads`."""
    placement = _active.get()
    return placement.heads(function, *arrays) if placement else function(*arrays)


def platform() -> str | None:
    """See `Placement.platform`; None where there is no placement."""
    placement = _active.get()
    return placement.platform if placement else None


def weights_are_whole() -> bool:
    """See `Placement.whole`; False where there is no placement."""
    placement = _active.get()
    return placement is not None and placement.whole


def place_weights(module: str, weights: Any) -> Any:
    """See `Placement.weights`."""
    placement = _active.get()
    return placement.weights(module, weights) if placement else weights


def place_params(params: Any) -> Any:
    """See `Placement.params`."""
    placement = _active.get()
    return placement.params(params) if placement else params

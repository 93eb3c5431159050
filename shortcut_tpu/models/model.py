"""A network as pure functions over a nested dict of parameters.

Usage:
  class DiT(Model):
      Config, Network = DiTConfig, Network
      def apply(self, params, x, t, d, labels): return self.network(params)(x, t, d, labels)
"""

import abc
import dataclasses
import functools
from typing import Any, ClassVar

from flax import nnx
import jax
import jax.numpy as jnp

from shortcut_tpu.array_types import Labels, Outputs, Rows, Scalars
from shortcut_tpu.models.placement import place_params

Params = Any


class Model(abc.ABC):
    """Base of the networks that objectives train.

    Class attributes:
      Config: dataclass of the shapes; it has the compute dtype, `dtype`, and that of derivatives,
        `tangent_dtype`.
      Network: the modules, made from (config, rngs=...).
      data_keys: what `Config` takes of `config.data`.
    """

    Config: ClassVar[Any]
    Network: ClassVar[Any]
    data_keys: ClassVar[tuple[str, ...]] = ("image_size", "channels", "num_classes")

    def __init__(self, config: Any):
        self.config = config
        network = nnx.eval_shape(lambda: self.Network(config, rngs=nnx.Rngs(0)))
        self._graph, self._abstract = nnx.split(network)

    @functools.cached_property
    def tangents(self) -> "Model":
        """The network in the dtype that its derivatives are computed in, on the same parameters."""
        dtype = self.config.tangent_dtype
        if dtype == self.config.dtype:
            return self
        return type(self)(dataclasses.replace(self.config, dtype=dtype))

    @property
    def null_label(self) -> float:
        """The label that stands for none; of an observation, each of its numbers."""
        return self.config.num_classes

    def init(self, key: jax.Array) -> Params:
        """Fresh float32 parameters; those of like blocks stacked on a leading layer axis."""
        return nnx.to_pure_dict(nnx.state(self.Network(self.config, rngs=nnx.Rngs(key))))

    def network(self, params: Params) -> Any:
        """The modules with these parameters in them, cast to the compute dtype."""
        # Cast here, once, so that no layer of a scan converts its weights again.
        dtype = jnp.dtype(self.config.dtype)
        params = place_params(jax.tree.map(lambda leaf: leaf.astype(dtype), params))
        state = jax.tree.map(lambda leaf: leaf, self._abstract)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(self._graph, state)

    @abc.abstractmethod
    def apply(
        self,
        params: Params,
        x: Rows,
        t: Scalars,
        d: Scalars,
        labels: Labels,
        **conditions: Scalars,
    ) -> Outputs:
        """What the network makes of x at times t for steps of size d.

        x are latents with labels, or chunks of actions with observations for labels.
        """

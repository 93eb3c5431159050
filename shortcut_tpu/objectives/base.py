"""The interface of a training objective.

An objective is a frozen dataclass: its fields are its hyperparameters, documented in
`configs/common.py`, and `loss` is a pure function of what a step hands it. The trainer knows no
objective by name.

Usage:
  objective = make_objective(config.objective)
  loss, metrics = objective.loss(inputs)
"""

import dataclasses
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp

Params = Any
Metrics = dict[str, jax.Array]


class Velocity(Protocol):
    """The network: mean velocity over a step of size d from time t."""

    def __call__(
        self, params: Params, x: jax.Array, t: jax.Array, d: jax.Array, labels: jax.Array
    ) -> jax.Array: ...


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What one training step hands to an objective.

    Attributes:
      apply: the network.
      params: the parameters that are differentiated.
      emas: moving averages of the parameters by name, not differentiated.
      x1: [B, H, W, C] float32 latents, the whole global batch.
      labels: [B] int32.
      null_label: the label that stands for none.
      key: the step's random key; the same on every host.
      step: int32 scalar.
      row_shards: over how many devices the rows lie. It may decide where work is done, never what
        comes out.
    """

    apply: Velocity
    params: Params
    emas: dict[str, Params]
    x1: jax.Array
    labels: jax.Array
    null_label: int
    key: jax.Array
    step: jax.Array
    row_shards: int = 1


@dataclasses.dataclass(frozen=True)
class Objective:
    """Base of all objectives.

    Class attributes:
      row_stride: every device must hold a multiple of this many rows.
      ema_names: the averages that `loss` reads, beside those that evaluation uses.
    """

    name: ClassVar[str]

    @property
    def row_stride(self) -> int:
        return 1

    @property
    def ema_names(self) -> tuple[str, ...]:
        return ()

    def loss(self, inputs: Inputs) -> tuple[jax.Array, Metrics]:
        """The scalar to minimise, and metrics by row.

        A metric is an array of any shape with one entry a row that it concerns, NaN where it does
        not concern one. It is left unreduced so that a step moves nothing between devices for it;
        the trainer reports its mean when it logs.
        """
        raise NotImplementedError

    def step_condition(self, num_steps: int) -> float:
        """The step size d that the sampler tells the network when it takes `num_steps` steps."""
        raise NotImplementedError


def path(x0: jax.Array, x1: jax.Array, t: jax.Array, sigma_min: float) -> jax.Array:
    """The straight path x_t = (1 - (1 - sigma_min) t) x_0 + t x_1, noise at t = 0.

    Args:
      x0: [B, ...] noise.
      x1: [B, ...] data.
      t: [B].
      sigma_min: noise left at t = 1; the official code has 1e-5, the paper 0.
    """
    t = along_rows(t, x0)
    return (1 - (1 - sigma_min) * t) * x0 + t * x1


def path_velocity(x0: jax.Array, x1: jax.Array, sigma_min: float) -> jax.Array:
    """Its derivative in t: x_1 - (1 - sigma_min) x_0."""
    return x1 - (1 - sigma_min) * x0


def along_rows(values: jax.Array, like: jax.Array) -> jax.Array:
    """[B] -> [B, 1, ..., 1], to multiply an array of the shape of `like`."""
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


def drop_labels(key: jax.Array, labels: jax.Array, rate: float, null_label: int) -> jax.Array:
    """Labels [B], each replaced by the null label with probability `rate`."""
    return jnp.where(jax.random.bernoulli(key, rate, labels.shape), null_label, labels)


def mean_square(error: jax.Array) -> jax.Array:
    """[B, ...] -> [B], the mean square over all axes but the first."""
    return jnp.mean(jnp.square(error), axis=tuple(range(1, error.ndim)))

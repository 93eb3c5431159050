"""Samplers: from noise to data by a trained network. Each objective chooses one.

Usage:
  x1 = euler(velocity, x0, labels, num_steps=4, d=0.25)
"""

from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp

from shortcut_tpu.array_types import Keys, Labels, Outputs, Rows, Scalars

# v(x, t, d, labels)
VelocityFn = Callable[[Rows, Scalars, Scalars, Labels], Outputs]


class ConditionedFn(Protocol):
    """A VelocityFn that may be told conditions by name as well."""

    def __call__(
        self, x: Rows, t: Scalars, d: Scalars, labels: Labels, **conditions: Scalars
    ) -> Outputs: ...


def _solved(
    advance: Callable[[jax.Array, jax.Array], jax.Array], x0: Rows, num_steps: int
) -> jax.Array:
    """x at t = 1 by x_{t + 1/n} = advance(x_t, i) from t = 0, i = n t; one scan of one program."""

    def step(x: Rows, index: jax.Array) -> tuple[jax.Array, None]:
        return advance(x, index), None

    return jax.lax.scan(step, x0, jnp.arange(num_steps))[0]


def euler(velocity: VelocityFn, x0: Rows, labels: Labels, num_steps: int, d: float) -> Rows:
    """x_{t + 1/n} = x_t + v(x_t, t, d, y) / n for t = 0, 1/n, ..., (n-1)/n.

    Source: arXiv 2410.12557, algorithm 2.

    Args:
      velocity: the network with its parameters.
      x0: noise.
      labels: int32.
      num_steps: n.
      d: the step size that the network is told.

    Returns:
      x at t = 1.
    """
    rows = x0.shape[0]

    def advance(x: Rows, index: jax.Array) -> jax.Array:
        t = jnp.full(rows, index / num_steps)
        return x + velocity(x, t, jnp.full(rows, d), labels) / num_steps

    return _solved(advance, x0, num_steps)


def second_order(network: VelocityFn, x0: Rows, labels: Labels, num_steps: int, d: float) -> Rows:
    """x_{t + h} = x_t + h u1(x_t, t, d, y) + h^2 u2(x_t, t, d, y) / 2, h = 1/n.

    Source: HOMO (arXiv 2502.00688, sampling). Exact where the acceleration is constant.

    Args:
      network: puts out (u1, u2), velocity and acceleration side by side in the last axis.
      x0: noise.
      labels: int32.
      num_steps: n.
      d: the step size that the network is told.

    Returns:
      x at t = 1.
    """
    rows = x0.shape[0]

    def advance(x: Rows, index: jax.Array) -> jax.Array:
        t = jnp.full(rows, index / num_steps)
        out = network(x, t, jnp.full(rows, d), labels)
        return second_order_step(x, out, 1 / num_steps)

    return _solved(advance, x0, num_steps)


def second_order_step(x: jax.Array, out: jax.Array, size: jax.Array | float) -> jax.Array:
    """x + h u1 + h^2 u2 / 2 [..., C] for `out` = (u1, u2) [..., 2 C]."""
    u1, u2 = jnp.split(out, 2, axis=-1)
    return x + size * (u1 + size * u2 / 2)


def consistency(
    velocity: VelocityFn,
    x0: Rows,
    labels: Labels,
    num_steps: int,
    keys: Keys,
) -> Rows:
    """To the data in every step, then back onto the path with new noise.

        x1_hat = x_t + (1 - t) v(x_t, t),   x_{t+h} = (t + h) x1_hat + (1 - t - h) e,   h = 1/n

    Source: "Consistency Models" (arXiv 2303.01469, algorithm 1), on the straight path as in the
    official shortcut-models code. The network is told d = 1 throughout.

    Args:
      velocity: the network with its parameters.
      x0: noise.
      labels: int32.
      num_steps: n.
      keys: random keys; step i draws its noise from a row's key folded with i.

    Returns:
      x at t = 1.
    """
    rows = x0.shape[0]

    def advance(x: Rows, index: jax.Array) -> jax.Array:
        t, t_next = index / num_steps, (index + 1) / num_steps
        x1_hat = x + (1 - t) * velocity(x, jnp.full(rows, t), jnp.ones(rows), labels)
        draw = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), x.shape[1:]))
        return t_next * x1_hat + (1 - t_next) * draw(keys)

    return _solved(advance, x0, num_steps)


def ddim(
    epsilon: VelocityFn,
    x0: Rows,
    labels: Labels,
    num_steps: int,
    alpha_bar: Callable[[jax.Array], jax.Array],
) -> Rows:
    """The deterministic sampler of a diffusion model, over n equal steps of t.

        x1_hat = (x_t - sqrt(1 - a_t) e(x_t, t)) / sqrt(a_t)
        x_{t+1/n} = sqrt(a_{t+1/n}) x1_hat + sqrt(1 - a_{t+1/n}) e(x_t, t)

    Source: "Denoising Diffusion Implicit Models" (arXiv 2010.02502, equation 12, sigma = 0).

    Args:
      epsilon: the network with its parameters, which predicts the noise.
      x0: noise.
      labels: int32.
      num_steps: n.
      alpha_bar: the share of the signal in the variance at time t; 1 at t = 1.

    Returns:
      x at t = 1.
    """
    rows = x0.shape[0]

    def advance(x: Rows, index: jax.Array) -> jax.Array:
        t = jnp.full(rows, index / num_steps)
        a, a_next = alpha_bar(t[0]), alpha_bar((index + 1) / num_steps)
        e = epsilon(x, t, jnp.ones(rows), labels)
        x1_hat = (x - jnp.sqrt(1 - a) * e) / jnp.sqrt(a)
        return jnp.sqrt(a_next) * x1_hat + jnp.sqrt(1 - a_next) * e

    return _solved(advance, x0, num_steps)


def guided(
    velocity: ConditionedFn,
    scale: float,
    null_label: float,
    interval: tuple[float, float] = (0.0, 1.0),
) -> ConditionedFn:
    """Classifier-free guidance at sampling time: v_null + scale (v - v_null), in one batch.

    Source: "Classifier-Free Diffusion Guidance" (arXiv 2207.12598), and for the interval arXiv
    2404.07724. A scale of 1 is no guidance and costs nothing; times outside of the interval cost as
    much as those inside. Guidance in an objective's target, or as a condition of the network, is
    part of the objective and needs none of this.

    Args:
      velocity: the network with its parameters.
      scale: the strength.
      null_label: the label that stands for none.
      interval: the times [start, end) that are guided; an end of 1 is one of them.
    """
    if scale == 1:
        return velocity
    start, end = interval

    def guided_velocity(
        x: Rows, t: Scalars, d: Scalars, labels: Labels, **conditions: Scalars
    ) -> Outputs:
        inside = (t >= start) & ((t < end) | (end == 1))
        strength = jnp.where(inside, scale, 1.0).reshape(-1, *(1 for _ in x.shape[1:]))
        x, t, d, conditions = jax.tree.map(lambda a: jnp.concatenate([a, a]), (x, t, d, conditions))
        labels = jnp.concatenate([labels, jnp.full_like(labels, null_label)])
        v_label, v_null = jnp.split(velocity(x, t, d, labels, **conditions), 2)
        return v_null + strength * (v_label - v_null)

    return guided_velocity

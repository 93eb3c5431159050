"""Samplers: from noise to data by the velocities of a trained network.

Usage:
  x1 = euler(velocity, x0, labels, num_steps=4, d=0.25)
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

VelocityFn = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def euler(
    velocity: VelocityFn, x0: jax.Array, labels: jax.Array, num_steps: int, d: float
) -> jax.Array:
    """x_{t + 1/n} = x_t + v(x_t, t, d, y) / n for t = 0, 1/n, ..., (n-1)/n.

    Source: arXiv 2410.12557, algorithm 2. All steps are one scan of one program.

    Args:
      velocity: v(x, t, d, labels), with t and d of shape [B].
      x0: [B, H, W, C] noise.
      labels: [B] int32.
      num_steps: n.
      d: the step size that the network is told, see `Objective.step_condition`.

    Returns:
      [B, H, W, C] at t = 1.
    """
    rows = x0.shape[0]

    def step(x: jax.Array, index: jax.Array) -> tuple[jax.Array, None]:
        t = jnp.full(rows, index / num_steps)
        return x + velocity(x, t, jnp.full(rows, d), labels) / num_steps, None

    return jax.lax.scan(step, x0, jnp.arange(num_steps))[0]


def guided(velocity: VelocityFn, scale: float, null_label: int) -> VelocityFn:
    """Classifier-free guidance at sampling time: v_null + scale (v - v_null), in one batch.

    Source: "Classifier-Free Diffusion Guidance" (arXiv 2207.12598). A scale of 1 is no guidance and
    costs nothing.
    """
    if scale == 1:
        return velocity

    def guided_velocity(x: jax.Array, t: jax.Array, d: jax.Array, labels: jax.Array) -> jax.Array:
        x, t, d = (jnp.concatenate([a, a]) for a in (x, t, d))
        v = velocity(x, t, d, jnp.concatenate([labels, jnp.full_like(labels, null_label)]))
        v_label, v_null = jnp.split(v, 2)
        return v_null + scale * (v_label - v_null)

    return guided_velocity

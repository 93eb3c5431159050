"""Guidance as a condition of the network, which is told 1 - 1/w of a strength w."""

import jax
import jax.numpy as jnp

from shortcut_tpu.sampling.samplers import ConditionedFn, VelocityFn

# What says by each of the conditions that there is no guidance.
UNGUIDED = {"guidance": 0.0, "guidance_start": 0.0, "guidance_end": 1.0}


def draw(key: jax.Array, num_rows: int, max_guidance: float) -> jax.Array:
    """1 - 1/w [num_rows] of w = exp(U log max_guidance), U uniform in [0, 1).

    Source: iMF's official code, at the exponent that it trains with.
    """
    return 1 - max_guidance ** -jax.random.uniform(key, (num_rows,))


def telling(velocity: ConditionedFn, **conditions: float) -> VelocityFn:
    """The network told the same conditions on every row and at every time."""

    def told(x: jax.Array, t: jax.Array, d: jax.Array, labels: jax.Array) -> jax.Array:
        rows = {name: jnp.full(len(x), value) for name, value in conditions.items()}
        return velocity(x, t, d, labels, **rows)

    return told

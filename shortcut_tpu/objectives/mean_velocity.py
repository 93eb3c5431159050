"""What MeanFlow and its successors share: intervals, guided velocities, derivatives, weights.

Their papers put noise at t = 1 and the mean velocity u(z_t, r, t) on an interval that ends at r,
nearer to the data. Here noise is at t = 0 and u(x, t, d) belongs to the interval [t, t + d]: their
t is our 1 - t, their r our 1 - t - d, their velocities ours with the other sign. So their identity
u = v - (t - r) du/dt, with r held fixed, reads

    u(x, t, d) = v + d Du,   Du = (v . grad) u + du/dt - du/dd,

the derivative along the path while the interval's end t + d stays.
"""

import jax
import jax.numpy as jnp

from shortcut_tpu.objectives import base, rows


def draw_intervals(
    key: jax.Array, num_rows: int, stride: int, mean: float, std: float
) -> tuple[jax.Array, jax.Array]:
    """Times t [num_rows] and step sizes d [num_rows], d > 0 on every stride-th row only.

    An interval lies between two draws of 1 - sigmoid(N(mean, std)). Source: MeanFlow (arXiv
    2505.13447, section 4.3 and Table 4).
    """
    ends = jax.nn.sigmoid(-mean - std * jax.random.normal(key, (2, num_rows)))
    t = jnp.min(ends, axis=0)
    d = jnp.max(ends, axis=0) - t
    return t, rows.put(jnp.zeros_like(d), stride, rows.take(d, stride))


def guided_velocity(
    inputs: base.Inputs,
    xt: jax.Array,
    t: jax.Array,
    v: jax.Array,
    labels: jax.Array,
    *,
    guidance: float,
    mix: float,
) -> jax.Array:
    """w v + (1 - w - k) u(x_t, t, 0, null) + k u(x_t, t, 0, y); v itself on rows without a label.

    Source: MeanFlow (arXiv 2505.13447, equation 21). The effective guidance is w / (1 - k).

    Args:
      inputs: for the network, with its trained weights, and the null label.
      xt: [B, H, W, C], at times t [B].
      t: [B].
      v: [B, H, W, C] velocities x_1 - x_0.
      labels: [B].
      guidance: w, 1 for none.
      mix: k, 0 for none.

    Returns:
      [B, H, W, C], no gradient flows into it.
    """
    if guidance == 1 and mix == 0:
        return v
    params, zero = base.frozen(inputs, ""), jnp.zeros_like(t)
    null = jnp.full_like(labels, inputs.null_label)
    if mix == 0:
        mixed = (1 - guidance) * inputs.apply(params, xt, t, zero, null)
    else:
        x2, t2, d2 = (rows.append(a, a, 1) for a in (xt, t, zero))
        u = inputs.apply(params, x2, t2, d2, rows.append(labels, null, 1))
        u_label, u_null = rows.detach(u, 1)
        mixed = (1 - guidance - mix) * u_null + mix * u_label
    has_label = base.along_rows(base.has_label(labels, inputs.null_label), v)
    return jax.lax.stop_gradient(jnp.where(has_label, guidance * v + mixed, v))


def total_derivative(
    inputs: base.Inputs,
    xt: jax.Array,
    t: jax.Array,
    d: jax.Array,
    v: jax.Array,
    labels: jax.Array,
    **conditions: jax.Array,
) -> jax.Array:
    """Du [n, H, W, C] of the trained weights' u by one forward-mode pass; no gradient flows in."""
    params = base.frozen(inputs, "")
    tangents = (v, jnp.ones_like(t), -jnp.ones_like(d))
    _, derivative = jax.jvp(
        lambda x, t, d: inputs.apply(params, x, t, d, labels, **conditions), (xt, t, d), tangents
    )
    return jax.lax.stop_gradient(derivative)


def adaptive(error: jax.Array, epsilon: float, power: float) -> jax.Array:
    """Errors [B] over sg(error + epsilon)^power (MeanFlow, equation 22)."""
    return error / jax.lax.stop_gradient(error + epsilon) ** power

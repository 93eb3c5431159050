"""Shared by MeanFlow and its successors: intervals, guided velocities, derivatives, weights.

Their papers put noise at t = 1 and the mean velocity u(z_t, r, t) on an interval that ends at r,
nearer to the data. Here noise is at t = 0 and u(x, t, d) belongs to the interval [t, t + d]: their
t is our 1 - t, their r our 1 - t - d, their velocities ours with the other sign. So their identity
u = v - (t - r) du/dt, with r held fixed, reads

    u(x, t, d) = v + d Du,   Du = (v . grad) u + du/dt - du/dd,

the derivative along the path while the interval's end t + d stays.
"""

import dataclasses
import functools
import statistics
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from shortcut_tpu.array_types import Labels, Outputs, Rows, Scalars
from shortcut_tpu.objectives import base, rows


class Points(NamedTuple):
    """Rows on their paths.

    Attributes:
      xt: [B, H, W, C], at times t.
      t: [B].
      d: [B], 0 on flow rows.
      v: [B, H, W, C], guided velocities; no gradient flows into them.
      labels: [B], some of them dropped.
    """

    xt: Rows
    t: Scalars
    d: Scalars
    v: Rows
    labels: Labels


@dataclasses.dataclass(frozen=True)
class MeanVelocity(base.Objective):
    """Base of the methods whose guidance is in the velocity that they learn.

    Attributes:
      interval_share: 1/n or 1 - 1/n, the rows with d > 0; the others, flow rows, learn v_g.
      time_mean, time_std: times are 1 - sigmoid(N(mean, std)).
      guidance, guidance_mix: w and k of v_g, see `guided_velocity`; 1 and 0 for none.
      guidance_interval: the times that are guided, start and end; 0 is noise and 1 is data.
      label_dropout: share of all rows that lose their label, and with it the guidance. They are
        flow rows, as in the official code of MeanFlow: so a coarse step is never asked for
        without a label, and explicit guidance of samples has nothing to build on there.
    """

    name: ClassVar[str] = ""
    smooth_times: ClassVar[bool] = True
    takes_pairs: ClassVar[bool] = True
    # Whether rows without a label are guided like others.
    guides_null: ClassVar[bool] = False

    interval_share: float = 0.25
    time_mean: float = -0.4
    time_std: float = 1.0
    guidance: float = 1.0
    guidance_mix: float = 0.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    label_dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            "guidance_interval",
            self.guidance_interval[0] < self.guidance_interval[1],
            "(start, end) with start before end",
        )

    @property
    def kinds(self) -> rows.Share:
        """The rows with an interval."""
        return rows.Share(self.interval_share)

    @property
    def row_stride(self) -> int:
        return self.kinds.stride

    def draw_intervals(self, key: jax.Array, num_rows: int) -> tuple[jax.Array, jax.Array]:
        """t and d [num_rows]."""
        return draw_intervals(key, num_rows, self.kinds, self.time_mean, self.time_std)

    def drop_labels(self, key: jax.Array, inputs: base.Inputs, t: Scalars) -> Labels:
        """The labels that the network is told."""
        return drop_flow_labels(key, inputs, self.kinds, self.label_dropout)

    def points(self, inputs: base.Inputs) -> Points:
        noise_key, time_key, label_key, _ = jax.random.split(inputs.key, 4)
        x1 = inputs.x1
        x0 = jax.random.normal(noise_key, x1.shape) if inputs.x0 is None else inputs.x0
        t, d = self.draw_intervals(time_key, x1.shape[0])
        xt = base.path(x0, x1, t, sigma_min=0.0)
        labels = self.drop_labels(label_key, inputs, t)
        v = guided_velocity(
            inputs,
            xt,
            t,
            x1 - x0,
            labels,
            guidance=self.guidance,
            mix=self.guidance_mix,
            interval=self.guidance_interval,
            null_too=self.guides_null,
        )
        return Points(xt, t, d, v, labels)


def draw_intervals(
    key: jax.Array, num_rows: int, kinds: rows.Share, mean: float, std: float
) -> tuple[jax.Array, jax.Array]:
    """Times t [num_rows] and step sizes d [num_rows], d > 0 on rows of `kinds` only.

    An interval lies between two draws of 1 - sigmoid(N(mean, std)); a row without one keeps the
    noisier of its two. Source: MeanFlow (arXiv 2505.13447, section 4.3 and Table 4) and its
    official code.
    """
    ends = jax.nn.sigmoid(-mean - std * jax.random.normal(key, (2, num_rows)))
    t = jnp.min(ends, axis=0)
    d = jnp.max(ends, axis=0) - t
    return t, kinds.put(jnp.zeros_like(d), kinds.take(d))


def draw_rectified_intervals(
    key: jax.Array, num_rows: int, kinds: rows.Share, exponent: float, mean: float, std: float
) -> tuple[jax.Array, jax.Array]:
    """Times and step sizes as `draw_intervals`, for paths that pairs have made straight.

    t has the density exp(a t) + exp(a (1 - t)), up to a factor, so that it is near 0 or 1 more
    often. Intervals are sigmoid(N(mean, std)) long and end at 1 at the latest; one that starts
    before .2 and ends beyond .6 ends at 1. Source: the official code of Re-MeanFlow (arXiv
    2511.23342).
    """
    side_key, time_key, length_key = jax.random.split(key, 3)
    uniform = jax.random.uniform(time_key, (num_rows,))
    # The inverse of the distribution function of exp(a t).
    t = jnp.log1p(uniform * jnp.expm1(exponent)) / exponent
    t = jnp.where(jax.random.bernoulli(side_key, shape=(num_rows,)), t, 1 - t)
    length = jax.nn.sigmoid(mean + std * jax.random.normal(length_key, (num_rows,)))
    end = jnp.minimum(t + length, 1.0)
    end = jnp.where((t < 0.2) & (end > 0.6), 1.0, end)
    return t, kinds.put(jnp.zeros_like(t), kinds.take(end - t))


@functools.cache
def mean_interval(mean: float, std: float) -> float:
    """E|a - b| of independent a and b drawn as sigmoid(N(mean, std)), from 4000 quantiles."""
    count = 4000
    quantiles = map(statistics.NormalDist(mean, std).inv_cdf, (np.arange(count) + 0.5) / count)
    times = 1 / (1 + np.exp(-np.array(list(quantiles))))
    # The sum of |a - b| over all pairs of sorted numbers.
    return float(2 * (times * (2 * np.arange(count) - count + 1)).sum() / count**2)


def drop_flow_labels(
    key: jax.Array, inputs: base.Inputs, kinds: rows.Share, share: float
) -> Labels:
    """Labels of which `share` of all rows are lost, all of them on rows without an interval."""
    if kinds.share == 1:
        return inputs.labels
    rate = min(1.0, share / (1 - kinds.share))
    dropped = base.drop_labels(key, inputs.labels, rate, inputs.null_label)
    return kinds.put(dropped, kinds.take(inputs.labels))


def guided_velocity(
    inputs: base.Inputs,
    xt: Rows,
    t: Scalars,
    v: Rows,
    labels: Labels,
    *,
    guidance: float,
    mix: float,
    interval: tuple[float, float] = (0.0, 1.0),
    null_too: bool = False,
) -> Rows:
    """w v + (1 - w - k) u(x_t, t, 0, null) + k u(x_t, t, 0, y) at times in the interval.

    v itself at other times and on rows without a label. Source: MeanFlow (arXiv 2505.13447,
    equation 21) and its official code for the interval. The effective guidance is w / (1 - k).

    Args:
      inputs: for the network, with its trained weights, and the null label.
      xt: [B, H, W, C], at times t [B].
      t: [B].
      v: [B, H, W, C] velocities x_1 - x_0.
      labels: [B].
      guidance: w, 1 for none.
      mix: k, 0 for none.
      interval: the times that are guided, both ends included.
      null_too: rows without a label, too, have w v + (1 - w) u(x_t, t, 0, null).

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
    guided = base.within(t, interval)
    if not null_too:
        guided &= base.has_label(labels, inputs.null_label)
    return jax.lax.stop_gradient(jnp.where(base.along_rows(guided, v), guidance * v + mixed, v))


def total_derivative(
    inputs: base.Inputs,
    xt: Rows,
    t: Scalars,
    d: Scalars,
    v: Rows,
    labels: Labels,
    **conditions: Scalars,
) -> Outputs:
    """Du of the trained weights' u by one forward-mode pass; no gradient flows in."""
    params, network = base.frozen(inputs, ""), inputs.differentiable or inputs.apply
    tangents = (v, jnp.ones_like(t), -jnp.ones_like(d))
    _, derivative = jax.jvp(
        lambda x, t, d: network(params, x, t, d, labels, **conditions), (xt, t, d), tangents
    )
    return jax.lax.stop_gradient(derivative)


def adaptive(error: jax.Array, epsilon: float, power: float) -> jax.Array:
    """Errors [B] over sg(error + epsilon)^power (MeanFlow, equation 22)."""
    return error / jax.lax.stop_gradient(error + epsilon) ** power

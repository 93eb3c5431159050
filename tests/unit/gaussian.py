"""A problem whose mean velocity is known: noise N(0, I) to data N(m, s^2 I) on the straight path.

x_t = (1 - t) x_0 + t x_1 has mean t m and variance c_t^2 = (1 - t)^2 + t^2 s^2. The flow of the
marginal velocity keeps every point at its number of standard deviations from the mean:

    x_e = e m + (c_e / c_t) (x_t - t m),   u(x_t, t, d) = (x_{t+d} - x_t) / d

Usage:
  problem = Gaussian(mean=0.7, std=0.4)
  u = problem.mean_velocity(x, t, d)          # x [B, ...], t and d [B]
  objective.targets(problem.inputs(x1), ...)  # with the exact field as the network
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from shortcut_tpu.objectives import Inputs
from shortcut_tpu.objectives.base import along_rows

NULL_LABEL = 1


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """The problem; `mean` and `std` are those of every value of the data."""

    mean: float
    std: float

    def deviation(self, t: Any) -> Any:
        """c_t."""
        return jnp.sqrt((1 - t) ** 2 + (t * self.std) ** 2)

    def flow(self, x: jax.Array, t: jax.Array, end: jax.Array) -> jax.Array:
        """x_end of the point that is at x at time t."""
        t, end = along_rows(t, x), along_rows(end, x)
        stretch = self.deviation(end) / self.deviation(t)
        return end * self.mean + stretch * (x - t * self.mean)

    def velocity(self, x: jax.Array, t: jax.Array) -> jax.Array:
        """E[x_1 - x_0 | x_t = x]."""
        t = along_rows(t, x)
        slope = (t * self.std**2 - (1 - t)) / self.deviation(t) ** 2
        return self.mean + slope * (x - t * self.mean)

    def mean_velocity(self, x: jax.Array, t: jax.Array, d: jax.Array) -> jax.Array:
        """u(x, t, d); written so that d = 0 gives the velocity, and its derivatives are exact."""
        t, d = along_rows(t, x), along_rows(d, x)
        before, after = self.deviation(t), self.deviation(t + d)
        # (after - before) / d, the difference of squares divided by d.
        slope = ((2 * t + d) * self.std**2 - (2 - 2 * t - d)) / (after + before)
        return self.mean + slope / before * (x - t * self.mean)

    def apply(
        self, params: Any, x: jax.Array, t: jax.Array, d: jax.Array, labels: Any, **conditions: Any
    ) -> jax.Array:
        """The exact field as a network."""
        return self.mean_velocity(x, t, d)

    def inputs(self, x1: jax.Array, **changes: Any) -> Inputs:
        """Inputs of an objective, with the exact field as the network and all its averages."""
        values: dict[str, Any] = {
            "apply": self.apply,
            "params": {},
            "emas": {"target": {}, "teacher": {}},
            "x1": x1,
            "labels": jnp.zeros(len(x1), jnp.int32),
            "null_label": NULL_LABEL,
            "key": jax.random.key(0),
            "step": jnp.zeros((), jnp.int32),
            "num_steps": 100,
        }
        return Inputs(**(values | changes))

    def pairs(self, rows: int, values: int = 2, seed: int = 0) -> tuple[jax.Array, jax.Array]:
        """Independent noise and data, each [rows, 1, 1, values]."""
        x0, x1 = jax.random.normal(jax.random.key(seed), (2, rows, 1, 1, values))
        return x0, self.mean + self.std * x1

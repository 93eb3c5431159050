"""Points on the paths of the Gaussian problem, with its exact velocities, for tests of targets."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shortcut_tpu.objectives import base
from tests.unit.gaussian import Gaussian

PROBLEM = Gaussian(mean=0.7, std=0.4)
ROWS = 64


def assert_equal(ours: Any, exact: Any) -> None:
    np.testing.assert_allclose(np.asarray(ours), np.asarray(exact), rtol=0, atol=1e-12)


@dataclasses.dataclass
class Points:
    """Rows at x_t, each with an interval [t, t + d] that ends at 1 or before."""

    def __post_init__(self) -> None:
        self.x0, self.x1 = PROBLEM.pairs(ROWS)
        t, d = jax.random.uniform(jax.random.key(1), (2, ROWS))
        self.t, self.d = t, d * (1 - t)
        self.xt = base.path(self.x0, self.x1, self.t, sigma_min=0.0)
        self.labels = jnp.zeros(ROWS, jnp.int32)
        self.inputs = PROBLEM.inputs(self.x1)
        self.v = PROBLEM.velocity(self.xt, self.t)
        self.u = PROBLEM.mean_velocity(self.xt, self.t, self.d)

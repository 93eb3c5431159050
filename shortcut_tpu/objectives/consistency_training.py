"""Consistency training on the straight path, without a teacher."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from shortcut_tpu.array_types import Keys, Labels, Rows, Scalars
from shortcut_tpu.objectives import base
from shortcut_tpu.sampling import samplers


@dataclasses.dataclass(frozen=True)
class ConsistencyTraining(base.Objective):
    """|| v(x_t, t) - sg[(x1_hat - x_t) / (1 - t)] ||^2.

    x1_hat = x_{t+h} + (1 - t - h) v(x_{t+h}, t + h), where x_t and x_{t+h} lie on the line between
    the same noise and the same data, and v comes from an average of the weights. The time is cut
    into 2^k bins of width h, and k grows in equal stages from 0 to log2(M) - 1 over the training.

    Source: "Consistency Models" (arXiv 2303.01469, definition of the training loss and algorithm 3)
    as the official code of arXiv 2410.12557 puts it on the straight path with v = (x1_hat - x_t) /
    (1 - t). The network is told d = 1 always. No label is dropped.

    Attributes:
      finest_steps: M, a power of two.
      target_ema: the average of the weights that makes the targets; "" for the weights themselves.
      sigma_min: noise left at t = 1 (code 1e-5, paper 0).
    """

    name: ClassVar[str] = "consistency_training"
    only_step: ClassVar[float | None] = 1.0
    scheduled: ClassVar[bool] = True

    finest_steps: int = 128
    target_ema: str = "target"
    sigma_min: float = 1e-5

    @property
    def ema_names(self) -> tuple[str, ...]:
        return (self.target_ema,) if self.target_ema else ()

    def bins(self, step: jax.Array, num_steps: int) -> jax.Array:
        """2^k at a step of a training of `num_steps`."""
        num_stages = self.finest_steps.bit_length() - 1
        return 2.0 ** base.stage(step, num_steps, num_stages)

    def targets(self, inputs: base.Inputs, x0: Rows, t: Scalars, t_next: Scalars) -> Rows:
        """Velocities from x_t to what x_{t_next} is taken for.

        Args:
          inputs: for the data, the labels, the network and its averages.
          x0: noise.
          t: [B].
          t_next: [B], later than t and at most 1.
        """
        params = base.frozen(inputs, self.target_ema)
        xt = base.path(x0, inputs.x1, t, self.sigma_min)
        x_next = base.path(x0, inputs.x1, t_next, self.sigma_min)
        v_next = inputs.apply(params, x_next, t_next, jnp.ones_like(t), inputs.labels)
        x1_hat = x_next + base.along_rows(1 - t_next, xt) * v_next
        return jax.lax.stop_gradient((x1_hat - xt) / base.along_rows(1 - t, xt))

    def loss(self, inputs: base.Inputs) -> tuple[jax.Array, base.Metrics]:
        noise_key, time_key = jax.random.split(inputs.key)
        x1, rows = inputs.x1, inputs.x1.shape[0]
        x0 = jax.random.normal(noise_key, x1.shape)
        bins = self.bins(inputs.step, inputs.num_steps)
        t = jnp.floor(jax.random.uniform(time_key, (rows,)) * bins) / bins

        xt = base.path(x0, x1, t, self.sigma_min)
        v = inputs.apply(inputs.params, xt, t, jnp.ones(rows), inputs.labels)
        error = base.mean_square(v - self.targets(inputs, x0, t, t + 1 / bins))
        return jnp.mean(error), {"loss_consistency": error}

    def sample(
        self,
        velocity: base.ConditionedFn,
        x0: Rows,
        labels: Labels,
        num_steps: int,
        keys: Keys,
    ) -> Rows:
        """To the data and back with new noise, `num_steps` times."""
        return samplers.consistency(velocity, x0, labels, num_steps, keys)

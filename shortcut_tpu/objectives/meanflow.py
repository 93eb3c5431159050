"""MeanFlow: the mean velocity from its differential identity, by forward-mode differentiation."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from shortcut_tpu.array_types import Labels, Rows, Scalars
from shortcut_tpu.objectives import base, mean_velocity


@dataclasses.dataclass(frozen=True)
class MeanFlow(mean_velocity.MeanVelocity):
    """|| u(x_t, t, d) - sg[v_g + d Du(x_t, t, d)] ||^2,  D along (v_g, 1, -1) in (x, t, d).

    Source: "Mean Flows for One-step Generative Modeling" (arXiv 2505.13447, algorithm 1 and, for
    the guided velocity v_g, equation 21). The paper's t is our 1 - t, its r our 1 - t - d and its
    velocities ours with the other sign; see `mean_velocity`. Guidance is in the target: samples
    cost one evaluation a step. Samples come from Euler steps, told d = 1/n.

    The derivative is taken on the rows that have an interval and outside of the gradient, which
    makes a step cheaper than the paper's and changes nothing else.

    The paper's recipe: Adam at 1e-4 with b2 .95, no weight decay, batch 256, evaluation EMA .9999;
    guided with w .2 and k .92 in times of [.2, 1] (L/2, its own [0, .8]) or [.25, 1] (XL/2).

    Attributes, beside those of `MeanVelocity` (paper: interval_share 1/4, times -0.4 and 1):
      weight_epsilon, weight_power: a row's summed square is divided by (itself + epsilon)^power
        (paper's code 0.01, 1).
    """

    name: ClassVar[str] = "meanflow"
    differentiates: ClassVar[bool] = True

    weight_epsilon: float = 0.01
    weight_power: float = 1.0

    def targets(
        self,
        inputs: base.Inputs,
        xt: Rows,
        t: Scalars,
        d: Scalars,
        v: Rows,
        labels: Labels,
    ) -> Rows:
        """v + d Du of rows with an interval [t, t + d], guided velocity v."""
        derivative = mean_velocity.total_derivative(inputs, xt, t, d, v, labels)
        return v + base.along_rows(d, xt) * derivative

    def loss(self, inputs: base.Inputs) -> tuple[jax.Array, base.Metrics]:
        p, kinds = self.points(inputs), self.kinds
        some = (kinds.take(a) for a in p)
        target = kinds.put(p.v, self.targets(inputs, *some))

        error = base.sum_square(inputs.apply(inputs.params, p.xt, p.t, p.d, p.labels) - target)
        weighted = mean_velocity.adaptive(error, self.weight_epsilon, self.weight_power)
        per_value = error / inputs.x1[0].size
        metrics = {
            "loss_velocity": kinds.rest(per_value),
            "loss_interval": kinds.take(per_value),
        }
        return jnp.mean(weighted), metrics

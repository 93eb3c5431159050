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
      short_first: weighs a row with an interval by 1 - s + s (1 - d) / E[1 - d] after that, where s
        falls from 1 to 0 over the training: short intervals first, in the end all alike. Source:
        "Understanding, Accelerating, and Improving MeanFlow Training" (arXiv 2511.19065, section 5
        and appendix B, equation 8), whose linear schedule it is; its FID of XL/2 is 2.87 with this
        and with other times and weights of flow rows, which are not here.
      time_exponent: a of Re-MeanFlow's times (arXiv 2511.23342), which go with `data.pairs`; see
        `mean_velocity.draw_rectified_intervals`. 0 for MeanFlow's.
    """

    name: ClassVar[str] = "meanflow"
    differentiates: ClassVar[bool] = True

    weight_epsilon: float = 0.01
    weight_power: float = 1.0
    short_first: bool = False
    time_exponent: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        other = self.short_first and self.time_exponent
        self.require("short_first", not other, "False where time_exponent is above 0")

    @property
    def scheduled(self) -> bool:
        return self.short_first

    def draw_intervals(self, key: jax.Array, num_rows: int) -> tuple[jax.Array, jax.Array]:
        """t and d [num_rows]."""
        if not self.time_exponent:
            return super().draw_intervals(key, num_rows)
        times = (self.time_exponent, self.time_mean, self.time_std)
        return mean_velocity.draw_rectified_intervals(key, num_rows, self.kinds, *times)

    def interval_weight(self, d: Scalars, step: jax.Array, num_steps: int) -> Scalars:
        """Of rows with intervals of length d at a step of a training of `num_steps`."""
        s = 1 - step / num_steps
        return (
            1 - s + s * (1 - d) / (1 - mean_velocity.mean_interval(self.time_mean, self.time_std))
        )

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
        if self.short_first:
            weight = self.interval_weight(kinds.take(p.d), inputs.step, inputs.num_steps)
            weighted = kinds.put(weighted, weight * kinds.take(weighted))
        per_value = error / inputs.x1[0].size
        metrics = {
            "loss_velocity": kinds.rest(per_value),
            "loss_interval": kinds.take(per_value),
        }
        return jnp.mean(weighted), metrics

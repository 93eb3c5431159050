"""The state that training carries from step to step."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from shortcut_tpu.models import Model, Params
from shortcut_tpu.training.power_averages import PowerAverage


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Parameters, optimizer state and exponential moving averages by name.

    Attributes:
      carried: what the objective carries from step to step; see `Objective.first_carried`.
      skipped: updates that were left out because the loss or a gradient was not finite.
      skipped_in_row: how many of them were the last ones.
    """

    step: jax.Array
    params: Params
    opt_state: optax.OptState
    emas: dict[str, Params]
    skipped: jax.Array
    skipped_in_row: jax.Array
    carried: dict[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def create(
        cls,
        key: jax.Array,
        model: Model,
        optimizer: optax.GradientTransformation,
        emas: Any,
        carried: dict[str, Any] | None = None,
    ) -> "TrainState":
        """A fresh state; every average starts at the initial parameters."""
        params = model.init(key)
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=optimizer.init(params),
            emas={name: jax.tree.map(jnp.copy, params) for name in sorted(emas)},
            skipped=jnp.zeros((), jnp.int32),
            skipped_in_row=jnp.zeros((), jnp.int32),
            carried=carried or {},
        )


def update_emas(
    emas: Mapping[str, Params],
    params: Params,
    decays: Mapping[str, float | PowerAverage],
    step: jax.Array,
) -> dict[str, Params]:
    """ema <- decay ema + (1 - decay) params, for each average by name.

    Args:
      emas: before the update.
      params: after it.
      decays: a number, or a decay that depends on the step.
      step: 1 for the first update.
    """

    def updated(average: float | PowerAverage, tree: Params) -> Params:
        share = average.share(step) if isinstance(average, PowerAverage) else 1 - average
        return jax.tree.map(lambda ema, p: ema + share * (p - ema), tree, params)

    return {name: updated(decays[name], tree) for name, tree in emas.items()}


def ema_distances(params: Params, emas: Mapping[str, Params]) -> dict[str, jax.Array]:
    """|ema - params| / |params| over all weights together, for each average by name."""
    norm = optax.tree.norm(params)
    return {
        name: optax.tree.norm(jax.tree.map(jnp.subtract, ema, params)) / norm
        for name, ema in emas.items()
    }

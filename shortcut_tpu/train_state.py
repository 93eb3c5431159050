"""What a training run carries from step to step, and the optimizer that moves it."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import optax

from shortcut_tpu.models import Model, Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Parameters, optimizer state and exponential moving averages by name.

    Attributes:
      skipped: updates that were left out because the loss or a gradient was not finite.
      skipped_in_row: how many of them were the last ones.
    """

    step: jax.Array
    params: Params
    opt_state: optax.OptState
    emas: dict[str, Params]
    skipped: jax.Array
    skipped_in_row: jax.Array

    @classmethod
    def create(
        cls, key: jax.Array, model: Model, optimizer: optax.GradientTransformation, emas: Any
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
        )


def update_emas(
    emas: Mapping[str, Params], params: Params, decays: Mapping[str, float]
) -> dict[str, Params]:
    """ema <- decay ema + (1 - decay) params, for each average by name."""
    return {
        name: jax.tree.map(
            lambda ema, p, decay=decays[name]: ema + (1 - decay) * (p - ema), tree, params
        )
        for name, tree in emas.items()
    }


def ema_distances(params: Params, emas: Mapping[str, Params]) -> dict[str, jax.Array]:
    """|ema - params| / |params| over all weights together, for each average by name."""
    norm = optax.tree.norm(params)
    return {
        name: optax.tree.norm(jax.tree.map(jnp.subtract, ema, params)) / norm
        for name, ema in emas.items()
    }


def make_schedule(config: ConfigDict) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then constant or cosine decay to zero."""
    optim, num_steps = config.optimizer, config.train.num_steps
    if optim.schedule not in ("constant", "cosine"):
        raise ValueError(f"optimizer.schedule={optim.schedule!r}: constant or cosine")
    warmup = optax.linear_schedule(0.0, optim.learning_rate, optim.warmup_steps)
    if optim.schedule == "cosine":
        after = optax.cosine_decay_schedule(
            optim.learning_rate, max(num_steps - optim.warmup_steps, 1)
        )
    else:
        after = optax.constant_schedule(optim.learning_rate)
    return optax.join_schedules([warmup, after], [optim.warmup_steps])


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """AdamW with decoupled weight decay on all parameters, as in the paper."""
    optim = config.optimizer
    return optax.adamw(
        make_schedule(config),
        b1=optim.b1,
        b2=optim.b2,
        weight_decay=optim.weight_decay,
    )

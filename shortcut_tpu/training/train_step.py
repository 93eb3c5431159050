"""One training step, the same for every objective and every mesh."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses

import jax
import jax.numpy as jnp
import optax

from shortcut_tpu.models import Model
from shortcut_tpu.objectives import Inputs, Judge, Metrics, Objective
from shortcut_tpu.training.accumulation import in_parts
from shortcut_tpu.training.latents import Scaling, sample_latents
from shortcut_tpu.training.power_averages import PowerAverage
from shortcut_tpu.training.train_state import TrainState, update_emas

Batch = dict[str, jax.Array]
TrainStep = Callable[..., tuple[TrainState, Metrics]]


def step_key(seed: int, step: jax.Array) -> jax.Array:
    """The random key of a step: a function of the seed and the step alone."""
    return jax.random.fold_in(jax.random.key(seed), step)


def make_train_step(
    model: Model,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    ema_decays: Mapping[str, float | PowerAverage],
    *,
    scaling: Scaling,
    seed: int,
    num_steps: int,
    row_shards: int,
    max_skipped: int,
    accumulate: int = 1,
) -> TrainStep:
    """The function (state, batch, judges=()) -> (state, metrics), to be jitted by the caller.

    An update whose loss or gradients are not finite is left out. More than `max_skipped` of them
    in a row leave the state as it is for good, until the loop sees the count and stops.

    Metrics are left as they are on the devices, by row; see `Objective.loss`.
    """

    def train_step(
        state: TrainState, batch: Batch, judges: Sequence[Judge] = ()
    ) -> tuple[TrainState, Metrics]:
        latent_key, objective_key = jax.random.split(step_key(seed, state.step))
        x1 = sample_latents(batch, latent_key, scaling)
        x0 = batch["noise"].astype(jnp.float32) if "noise" in batch else None
        labels = batch["observation" if "observation" in batch else "label"]
        parts = {"batch_size": len(x1), "accumulate": accumulate, "shards": row_shards}
        apply = in_parts(model.apply, **parts)
        differentiable = None
        if objective.differentiates:
            differentiable = in_parts(model.tangents.apply, **parts)
        judges = [
            dataclasses.replace(each, features=in_parts(each.features, **parts)) for each in judges
        ]

        def loss_fn(params):
            loss, metrics, carried = objective.loss_carrying(
                Inputs(
                    apply=apply,
                    params=params,
                    emas=state.emas,
                    x1=x1,
                    labels=labels,
                    null_label=model.null_label,
                    key=objective_key,
                    step=state.step,
                    num_steps=num_steps,
                    row_shards=row_shards,
                    x0=x0,
                    differentiable=differentiable,
                    model=model,
                    judges=judges,
                    carried=state.carried,
                )
            )
            return loss, (metrics, carried)

        (loss, (metrics, carried)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # Both are sums over all devices already: that they are finite costs no collective.
        grad_norm = optax.tree.norm(grads)
        sound = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        sound &= state.skipped_in_row <= max_skipped
        updated = dataclasses.replace(
            state,
            params=params,
            opt_state=opt_state,
            emas=update_emas(state.emas, params, ema_decays, state.step + 1),
            carried=carried,
        )
        state = _advanced(state, updated, sound, objective, num_steps)
        norms = {
            "grad_norm": grad_norm,
            "update_norm": optax.tree.norm(updates),
            "param_norm": optax.tree.norm(state.params),
        }
        skips = {"skipped": state.skipped, "skipped_in_row": state.skipped_in_row}
        return state, {"loss": loss} | metrics | norms | skips

    return train_step


def _advanced(
    state: TrainState, updated: TrainState, sound: jax.Array, objective: Objective, num_steps: int
) -> TrainState:
    """The state after a step: the updated one where the update is sound, else the one before."""
    kept = jax.tree.map(lambda new, old: jnp.where(sound, new, old), updated, state)
    return dataclasses.replace(
        kept,
        step=state.step + 1,
        # A change of teacher belongs to the step, whether or not its update is left out.
        emas=objective.renewed(kept.emas, state.step, num_steps),
        skipped=state.skipped + ~sound,
        skipped_in_row=jnp.where(sound, 0, state.skipped_in_row + 1),
    )

"""Builds the parts of a config: model, objective, optimizer, mesh and the jitted train step.

`train` runs these and `preflight` compiles these, so that what was proven is what is run.

Usage:
  experiment = Experiment.from_config(config, devices=jax.devices(), latent_scale=0.18215)
  state = experiment.init_state()
  state, metrics = experiment.train_step(state, batch)
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict
import optax

from shortcut_tpu.models import Model
from shortcut_tpu.models.placement import placed
from shortcut_tpu.objectives import Judge, Objective
from shortcut_tpu.objectives.base import TEACHER
from shortcut_tpu.pod import partitioning
from shortcut_tpu.training.accumulation import require_parts
from shortcut_tpu.training.flops import count_flops
from shortcut_tpu.training.latents import Scaling
from shortcut_tpu.training.optimizers import make_schedule
from shortcut_tpu.training.parts import make_parts
from shortcut_tpu.training.power_averages import PowerAverage, averages
from shortcut_tpu.training.train_state import TrainState, ema_distances
from shortcut_tpu.training.train_step import make_train_step

P = ParamSpec("P")
T = TypeVar("T")


def latent_shape(data: ConfigDict) -> tuple[int, ...]:
    """What a config's network generates: latents [side, side, channels], or [horizon, channels]."""
    if data.horizon:
        return (data.horizon, data.channels)
    return (data.image_size, data.image_size, data.channels)


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """The parts of a run.

    Attributes:
      latent_scale: the autoencoder's factor between stored latents and those that the model sees.
      judges: what an objective that needs them trains by, whole on every device; the third
        argument of `train_step`.
    """

    config: ConfigDict
    model: Model
    objective: Objective
    optimizer: optax.GradientTransformation
    mesh: Mesh
    latent_scale: float
    judges: tuple[Judge, ...] = ()

    @classmethod
    def from_config(
        cls,
        config: ConfigDict,
        devices: Sequence[jax.Device],
        latent_scale: float = 1.0,
        judges: Sequence[Judge] = (),
    ) -> "Experiment":
        """Builds the parts.

        Raises:
          UserError: a value of the config is out of range, or the batch does not fit the mesh.
        """
        parts = make_parts(config)
        shape = partitioning.choose_shape(
            config.mesh,
            len(devices),
            batch_size=config.batch_size,
            row_stride=parts.objective.row_stride,
            num_heads=config.model.num_heads,
            width=config.model.width,
            slices=partitioning.count_slices(devices),
        )
        mesh = partitioning.make_mesh(shape, devices)
        shards = partitioning.row_shards(mesh)
        require_parts(config.batch_size, config.train.accumulate, shards)
        return cls(
            config=config,
            model=parts.network(parts.network_config),
            objective=parts.objective,
            optimizer=parts.optimizer,
            mesh=mesh,
            latent_scale=latent_scale,
            judges=tuple(partitioning.replicate(mesh, judge) for judge in judges),
        )

    @property
    def scaling(self) -> Scaling:
        """Between stored latents and those that the model sees."""
        return Scaling.of(self.config.data, self.latent_scale)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return latent_shape(self.config.data)

    @property
    def ema_decays(self) -> dict[str, float | PowerAverage]:
        """Decay of each average of the weights; a teacher's, if there is one, is 1."""
        teacher = {TEACHER: 1.0} if self.objective.needs_teacher else {}
        return averages(self.config) | teacher

    def _create_state(self, key: jax.Array) -> TrainState:
        carried = self.objective.first_carried(self.judges)
        return TrainState.create(key, self.model, self.optimizer, self.ema_decays, carried)

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """The state's shapes, dtypes and shardings."""
        shapes = jax.eval_shape(self._create_state, jax.random.key(0))
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            partitioning.state_shardings(self.mesh, shapes),
        )

    def init_state(self) -> TrainState:
        """A fresh state, created where it lies."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)
        create = jax.jit(self._create_state, out_shardings=shardings)
        return create(jax.random.key(self.config.seed))

    def abstract_batch(self, fields: dict[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
        """A global batch's shapes; `fields` maps names to (dtype, shape of one row)."""
        rows = partitioning.rows(self.mesh)
        return {
            name: jax.ShapeDtypeStruct((self.config.batch_size, *shape), dtype, sharding=rows)
            for name, (dtype, shape) in fields.items()
        }

    def model_flops(self, fields: dict[str, Any]) -> int:
        """Operations in the products of the method in one step, on all devices together.

        Recomputation, padding and rows that only the layout makes necessary do not count: it is the
        same step on one device that keeps all activations. The backward pass of attention's kernel
        recomputes its logits: XLA's products count instead.

        Args:
          fields: of a batch, as in `abstract_batch`.
        """
        config = self.config.copy_and_resolve_references()
        with config.unlocked():
            config.model.remat, config.model.attention = "none", "xla"
            config.mesh.update({axis: 1 for axis in partitioning.AXES})
            config.train.accumulate = 1
        first = self.mesh.devices.flat[:1].tolist()
        judges = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), self.judges
        )
        alone = Experiment.from_config(config, first, judges=judges)
        batch = alone.abstract_batch(fields)
        return count_flops(alone.train_step, alone.abstract_state, batch, alone.judges)

    @functools.cached_property
    def train_step(self) -> Any:
        """The jitted step; it consumes the state it is given."""
        step = make_train_step(
            self.model,
            self.objective,
            self.optimizer,
            self.ema_decays,
            scaling=self.scaling,
            seed=self.config.seed,
            num_steps=self.config.train.num_steps,
            row_shards=partitioning.row_shards(self.mesh),
            max_skipped=self.config.train.max_skipped,
            accumulate=self.config.train.accumulate,
        )
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)
        return jax.jit(self.placed(step), donate_argnums=0, out_shardings=(shardings, None))

    def placed(self, function: Callable[P, T]) -> Callable[P, T]:
        """The function, its networks computed where the mesh wants them; to be jitted."""
        rows = self.config.batch_size // self.config.train.accumulate
        placement = partitioning.MeshPlacement(self.mesh, rows, self.config.mesh.gather)

        @functools.wraps(function)
        def traced(*args: P.args, **kwargs: P.kwargs) -> T:
            with placed(placement):
                return function(*args, **kwargs)

        return traced

    @functools.cached_property
    def summarize(self) -> Any:
        """Metrics by row -> scalars on every host: means over the rows that a metric concerns."""
        return jax.jit(
            lambda metrics: jax.tree.map(jnp.nanmean, metrics),
            out_shardings=partitioning.replicated(self.mesh),
        )

    @functools.cached_property
    def summarize_state(self) -> Any:
        """State -> scalars on every host; apart from the step, which need not pay for them."""
        schedule = make_schedule(self.config)

        def summary(state: TrainState) -> dict[str, jax.Array]:
            distances = ema_distances(state.params, state.emas)
            # Left-out updates do not count in the schedule.
            last_update = jnp.maximum(state.step - state.skipped - 1, 0)
            return {f"ema_distance_{name}": d for name, d in distances.items()} | {
                "learning_rate": jnp.asarray(schedule(last_update))
            }

        return jax.jit(summary, out_shardings=partitioning.replicated(self.mesh))

"""The interface of a training objective.

An objective is a frozen dataclass: its fields are its hyperparameters, documented in
`configs/hyperparameters.py`, and `loss` is a pure function of what a step hands it. The trainer
knows no objective by name.

Usage:
  objective = make_objective(config.objective)
  loss, metrics = objective.loss(inputs)
"""

import abc
from collections.abc import Callable, Iterable, Sequence
import dataclasses
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp

from configs.common import get_limits
from shortcut_tpu.array_types import Keys, Labels, Outputs, Rows, Scalars
from shortcut_tpu.objectives.frechet import Real
from shortcut_tpu.sampling import samplers
from shortcut_tpu.sampling.samplers import ConditionedFn

Params = Any
Metrics = dict[str, jax.Array]

_LIMITS = get_limits()

# A teacher is an average of weights that does not move.
TEACHER = "teacher"


class Velocity(Protocol):
    """The network: mean velocity over a step of size d from time t.

    With `Objective.heads` above 1 the outputs of the heads lie side by side in the last axis.
    """

    def __call__(
        self,
        params: Params,
        x: Rows,
        t: Scalars,
        d: Scalars,
        labels: Labels,
        **conditions: Scalars,
    ) -> Outputs: ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Judge:
    """A frozen network that samples are measured by, and the real data's moments under it.

    A step takes judges as arguments: a program that held their weights as constants would be large
    and slow to compile.

    Attributes:
      name: of the distance by it.
      features: weights and latents [B, H, W, C] as the model sees them -> features [B, F].
      weights: arrays, or their shapes where a step is only compiled.
      real: moments of the real data's features.
    """

    name: str = dataclasses.field(metadata={"static": True})
    features: Callable[[Any, jax.Array], jax.Array] = dataclasses.field(metadata={"static": True})
    weights: Any
    real: Real


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What one training step hands to an objective.

    Attributes:
      apply: the network.
      params: the parameters that are differentiated.
      emas: moving averages of the parameters by name, not differentiated; among them "teacher",
        whose weights rest, for objectives that need one.
      x1: float32 latents [H, W, C] or actions [horizon, A], the whole global batch.
      x0: float32, the noises that a teacher made x1 from; only where the records are
        pairs.
      differentiable: the network in the dtype of its derivatives, `model.tangent_dtype`, for
        objectives that take some in x and the times; the same as `apply` where None.
      model: what `apply` belongs to, for objectives whose network has more parts than that.
      judges: for objectives that need them.
      carried: what `Objective.loss_carrying` gave in the step before, or `first_carried`.
      labels: int32; or float32, observations.
      null_label: the label that stands for none; of an observation, each of its numbers.
      key: the step's random key; the same on every host.
      step: int32 scalar.
      num_steps: steps of the whole training, for what follows a schedule.
      row_shards: over how many devices the rows lie. It may decide where work is done, never what
        comes out.
    """

    apply: Velocity
    params: Params
    emas: dict[str, Params]
    x1: Rows
    labels: Labels
    null_label: float
    key: jax.Array
    step: jax.Array
    num_steps: int
    row_shards: int = 1
    x0: Rows | None = None
    differentiable: Velocity | None = None
    model: Any = None
    judges: Sequence[Judge] = ()
    carried: Any = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Objective(abc.ABC):
    """Base of all objectives.

    Class attributes and properties:
      name: what configs call it.
      group: where its hyperparameters stand in `config.objective`; under its name by default.
      conditions: scalars that the network is told beside t, d and the label; each, [B] in [0, 1],
        is handed to the network by its name.
      heads: how many velocities the network puts out, see `Velocity`.
      velocity_heads: how many of them, from the first, can start as the velocity of another run.
      network: which of `models.NETWORKS` it trains; the config's if empty.
      needs_teacher: whether `emas` must hold a teacher, a trained model that the parameters start
        from.
      needs_pairs: whether it trains on `data.pairs`, a teacher's noises and samples.
      needs_judges: whether it trains a generator that another objective has trained, by `judges`.
      takes_pairs: whether it trains on them where the config names some.
      one_step: whether it makes its samples in one step and in no more.
      only_step: the step size, if the network is told no other than this one.
      differentiates: whether `loss` takes derivatives of the network in x and the times.
      smooth_times: whether the network must be smooth in t and d, for objectives that
        differentiate in them or take d from a continuum.
      scheduled: whether what is trained at a step depends on how many there will be.
      told_time: whether the network is told t; without it, it has to see the time in x.
      row_stride: every device must hold a multiple of this many rows.
      ema_names: the averages that `loss` reads, beside those that evaluation uses.
    """

    name: ClassVar[str]
    group: ClassVar[str] = ""
    conditions: ClassVar[tuple[str, ...]] = ()
    heads: ClassVar[int] = 1
    velocity_heads: ClassVar[int] = 1
    network: ClassVar[str] = ""
    needs_teacher: ClassVar[bool] = False
    needs_pairs: ClassVar[bool] = False
    needs_judges: ClassVar[bool] = False
    takes_pairs: ClassVar[bool] = False
    one_step: ClassVar[bool] = False
    only_step: ClassVar[float | None] = None
    differentiates: ClassVar[bool] = False
    smooth_times: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        cls.group = cls.__dict__.get("group") or cls.name

    def __post_init__(self) -> None:
        """Raises a ValueError for what configs/hyperparameters.py does not admit."""
        for field in dataclasses.fields(self):
            limit = _LIMITS.get(f"objective.{self.group}.{field.name}")
            if limit is not None:
                self.require(field.name, limit.admits(getattr(self, field.name)), str(limit))

    def require(self, name: str, admitted: bool, limit: str) -> None:
        """Raises a ValueError unless a hyperparameter has a value that it may have."""
        if not admitted:
            value = getattr(self, name)
            raise ValueError(f"objective.{self.group}.{name}={value!r}: it may be {limit}")

    @property
    def scheduled(self) -> bool:
        """Whether what is trained at a step depends on how many there will be."""
        return False

    @property
    def told_time(self) -> bool:
        """Whether the network is told t, beside d."""
        return True

    @property
    def row_stride(self) -> int:
        return 1

    @property
    def ema_names(self) -> tuple[str, ...]:
        return ()

    @abc.abstractmethod
    def loss(self, inputs: Inputs) -> tuple[jax.Array, Metrics]:
        """The scalar to minimise, and metrics by row.

        A metric is an array of any shape with one entry a row that it concerns, NaN where it does
        not concern one. It is left unreduced so that a step moves nothing between devices for it;
        the trainer reports its mean when it logs.
        """

    def first_carried(self, judges: Sequence[Judge]) -> dict[str, Any]:
        """What the first step is handed as `Inputs.carried`: arrays in a dict of any depth.

        It is part of the training's state, and replicated over devices unless a rule in
        `partitioning.RULES` says otherwise.
        """
        return {}

    def loss_carrying(self, inputs: Inputs) -> tuple[jax.Array, Metrics, dict[str, Any]]:
        """`loss`, and what the next step is handed as `Inputs.carried`.

        Where an update is left out, so is what it would have carried on.
        """
        loss, metrics = self.loss(inputs)
        return loss, metrics, inputs.carried

    def renewed(
        self, emas: dict[str, Params], step: jax.Array, num_steps: int
    ) -> dict[str, Params]:
        """The averages after a step; another teacher may take the old one's place.

        It is called after every step, also where the update was left out.
        """
        return emas

    @property
    def judged_by(self) -> tuple[tuple[str, str, str], ...]:
        """The judges that it needs: protocol, features and reference of each, as `evaluate` has."""
        return ()

    def step_counts(self, asked: Iterable[int]) -> tuple[int, ...]:
        """Those of the numbers of sampling steps that it can make samples in."""
        return tuple(n for n in asked if n == 1 or not self.one_step)

    def sample(
        self,
        velocity: ConditionedFn,
        x0: Rows,
        labels: Labels,
        num_steps: int,
        keys: Keys,
    ) -> Rows:
        """From noise to data in `num_steps` evaluations; by default Euler, told d = 1/num_steps.

        Args:
          velocity: the network with its parameters.
          x0: noise.
          labels: int32, or observations.
          num_steps: evaluations of the network.
          keys: random keys, each a function of the sample's number, for samplers that draw
            more noise than x0.

        Returns:
          x at t = 1.
        """
        return samplers.euler(velocity, x0, labels, num_steps, 1 / num_steps)


def path(x0: Rows, x1: Rows, t: Scalars, sigma_min: float) -> Rows:
    """The straight path x_t = (1 - (1 - sigma_min) t) x_0 + t x_1, noise at t = 0.

    Args:
      x0: noise.
      x1: data.
      t: times.
      sigma_min: noise left at t = 1; the official code has 1e-5, the paper 0.
    """
    t = along_rows(t, x0)
    return (1 - (1 - sigma_min) * t) * x0 + t * x1


def path_velocity(x0: Rows, x1: Rows, sigma_min: float) -> Rows:
    """Its derivative in t: x_1 - (1 - sigma_min) x_0."""
    return x1 - (1 - sigma_min) * x0


def noises(inputs: Inputs) -> Rows:
    """x_0 of the pairs."""
    assert inputs.x0 is not None, "the records are no pairs"
    return inputs.x0


def frozen(inputs: Inputs, ema: str) -> Params:
    """The average of that name, or the trained parameters for ""; no gradient flows into them."""
    return jax.lax.stop_gradient(inputs.emas[ema] if ema else inputs.params)


def clipped(x: jax.Array, bound: float) -> jax.Array:
    """x within [-bound, bound]; a bound of 0 is none."""
    return jnp.clip(x, -bound, bound) if bound else x


def along_rows(values: jax.Array, like: jax.Array) -> jax.Array:
    """[B] -> [B, 1, ..., 1], to multiply an array of the shape of `like`."""
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


def drop_labels(key: jax.Array, labels: Labels, rate: float, null_label: float) -> Labels:
    """The labels, each row's replaced by the null label with probability `rate`."""
    drop = jax.random.bernoulli(key, rate, labels.shape[:1])
    return jnp.where(along_rows(drop, labels), null_label, labels)


def has_label(labels: Labels, null_label: float) -> jax.Array:
    """[B], whether each of the labels [B] or [B, O] is another one than the null label."""
    return jnp.any(labels != null_label, axis=tuple(range(1, labels.ndim)))


def within(t: Scalars, interval: tuple[float, float]) -> jax.Array:
    """Whether times lie in an interval (start, end), both included."""
    return (t >= interval[0]) & (t <= interval[1])


def mean_square(error: Rows) -> Scalars:
    """The mean square over all axes but the first."""
    return jnp.mean(jnp.square(error), axis=tuple(range(1, error.ndim)))


def sum_square(error: Rows) -> Scalars:
    """The sum of squares over all axes but the first."""
    return jnp.sum(jnp.square(error), axis=tuple(range(1, error.ndim)))


def stage(step: jax.Array, num_steps: int, num_stages: int) -> jax.Array:
    """0 .. num_stages - 1, float32: which of equal stages of a training a step belongs to."""
    return jnp.minimum(jnp.floor(step * num_stages / num_steps), num_stages - 1)

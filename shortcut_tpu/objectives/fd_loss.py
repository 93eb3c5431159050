"""Post-training of a one-step generator by Frechet distances of features of its samples."""

from collections.abc import Sequence
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from shortcut_tpu.array_types import Keys, Labels, Rows
from shortcut_tpu.objectives import base, frechet
from shortcut_tpu.objectives.shortcut import Shortcut

# What of the generator's own objective decides how its network looks.
_TRAITS = ("conditions", "heads", "velocity_heads", "network", "smooth_times", "only_step")


@dataclasses.dataclass(frozen=True)
class FDLoss(base.Objective):
    """sum_k FD_k / sg[FD_k + e],  FD_k between moments of features k of real and generated images.

    Generated moments follow the samples x of the step, made from noise in one step, decoded and
    put through the frozen network f_k:

        m <- b sg[m] + (1 - b) mean f_k(x),   M <- b sg[M] + (1 - b) mean f_k(x) f_k(x)^T

    and their covariance is M - m m^T. So the distance is of about batch / (1 - b) samples, and
    the gradient of one batch.

    Source: "Representation Frechet Loss for Visual Generation" (arXiv 2604.28190) and its official
    code, with averaged moments. Departures: the moments start at the real ones, not at those of
    50 000 samples, so that no covariance is ever singular; after a few times 1 / (1 - b) steps, in
    which the learning rate warms up, they are the generator's. Labels are as frequent as in the
    data. Everything is in float32, see `frechet`; the official code has the moments in float64.

    After it the distances that were trained on measure nothing; score by another network.

    Attributes:
      generator: the objective that the weights were trained by: its network, conditions and
        one-step sampler, with the hyperparameters that the config has for it.
      protocols: what is measured, as by `evaluate`, of one or more networks.
      features: their weights, NAME:FILE each; none, or one for each protocol, "" for packaged ones.
      references: files of real statistics; none, or one for each, "" for the run's own records.
      decay: b.
      epsilon: e (code 0.01).
    """

    name: ClassVar[str] = "fd_loss"
    needs_judges: ClassVar[bool] = True
    one_step: ClassVar[bool] = True

    generator: str = "shortcut"
    protocols: tuple[str, ...] = ("fd_pixel",)
    features: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    decay: float = 0.999
    epsilon: float = 0.01
    trained: dataclasses.InitVar[base.Objective | None] = None

    def __post_init__(self, trained: base.Objective | None) -> None:
        super().__post_init__()
        for key in ("features", "references"):
            count = len(getattr(self, key))
            self.require(key, count in (0, len(self.protocols)), "empty, or one for each protocol")
        # Of a frozen dataclass; neither is a hyperparameter of its own.
        object.__setattr__(self, "_trained", trained or Shortcut())
        for trait in _TRAITS:
            object.__setattr__(self, trait, getattr(self._trained, trait))

    _trained: ClassVar[base.Objective]

    @property
    def told_time(self) -> bool:
        return self._trained.told_time

    @property
    def judged_by(self) -> tuple[tuple[str, str, str], ...]:
        none = ("",) * len(self.protocols)
        files = self.features or none, self.references or none
        return tuple(zip(self.protocols, *files, strict=True))

    def first_carried(self, judges: Sequence[base.Judge]) -> dict[str, Any]:
        """Moments of y, the coordinates in which real features have mean 0 and variance 1."""
        return {
            judge.name: {"mean": jnp.zeros(length), "second": jnp.eye(length)}
            for judge in judges
            for length in judge.real.mean.shape
        }

    def loss(self, inputs: base.Inputs) -> tuple[jax.Array, base.Metrics]:
        return self.loss_carrying(inputs)[:2]

    def loss_carrying(self, inputs: base.Inputs) -> tuple[jax.Array, base.Metrics, dict[str, Any]]:
        x1 = self._samples(inputs)
        loss, metrics, carried = jnp.zeros(()), {}, {}
        for judge in inputs.judges:
            y = judge.real.coordinates(judge.features(judge.weights, x1))
            before = inputs.carried[judge.name]
            mean = self._followed(before["mean"], jnp.mean(y, axis=0))
            second = self._followed(before["second"], frechet.product(y.T, y) / len(y))
            distance = frechet.distance(judge.real, mean, second)
            loss += distance / (jax.lax.stop_gradient(distance) + self.epsilon)
            metrics[f"distance_{judge.name}"] = distance
            carried[judge.name] = {"mean": mean, "second": second}
        return loss, metrics, carried

    def _samples(self, inputs: base.Inputs) -> Rows:
        """x_1 like the batch, in one step from noise, with its labels."""
        noise_key, sample_key = jax.random.split(inputs.key)
        rows = len(inputs.x1)

        def velocity(*arrays: jax.Array, **conditions: jax.Array) -> jax.Array:
            return inputs.apply(inputs.params, *arrays, **conditions)

        x0 = jax.random.normal(noise_key, inputs.x1.shape)
        keys = jax.random.split(sample_key, rows)
        return self.sample(velocity, x0, inputs.labels, 1, keys)

    def _followed(self, average: jax.Array, batch: jax.Array) -> jax.Array:
        return self.decay * average + (1 - self.decay) * batch

    def sample(
        self,
        velocity: base.ConditionedFn,
        x0: Rows,
        labels: Labels,
        num_steps: int,
        keys: Keys,
    ) -> Rows:
        """The generator's own sampler; `num_steps` is 1."""
        return self._trained.sample(velocity, x0, labels, num_steps, keys)

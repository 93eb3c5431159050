"""Progressive distillation: two steps of a teacher in one of the student, seven times over."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from shortcut_tpu.array_types import Keys, Labels, Rows, Scalars
from shortcut_tpu.objectives import base, rows
from shortcut_tpu.sampling import samplers


@dataclasses.dataclass(frozen=True)
class ProgressiveDistillation(base.Objective):
    """|| v(x_t, t) - sg[(v_T(x_t, t) + v_T(x', t + d/2)) / 2] ||^2,  x' = x_t + d/2 v_T(x_t, t).

    The training falls into log2(M) equal stages, d = 2/M in the first and 1 in the last. The
    teacher T of the first is a flow-matching model, whose weights the student starts from; at the
    end of a stage the student's average takes its place. Time t is a multiple of d.

    Source: "Progressive Distillation for Fast Sampling of Diffusion Models" (arXiv 2202.00512,
    algorithm 2), on the straight path as in the official code of arXiv 2410.12557. The network is
    told d = 1 always, so that it serves the step size of its stage only. No label is dropped.

    Attributes:
      finest_steps: M, a power of two.
      clip: bound on x'; 0 for none (code 4).
      guidance: w in v_null + w (v - v_null) of the teacher in the first stage; 1 for none.
      target_ema: the student's average that becomes the teacher.
      sigma_min: noise left at t = 1 (code 1e-5, paper 0).
    """

    name: ClassVar[str] = "progressive_distillation"
    only_step: ClassVar[float | None] = 1.0
    needs_teacher: ClassVar[bool] = True
    scheduled: ClassVar[bool] = True

    finest_steps: int = 128
    clip: float = 4.0
    guidance: float = 1.0
    target_ema: str = "target"
    sigma_min: float = 1e-5

    @property
    def ema_names(self) -> tuple[str, ...]:
        return (self.target_ema,)

    @property
    def num_stages(self) -> int:
        return self.finest_steps.bit_length() - 1

    def stage(self, step: jax.Array, num_steps: int) -> jax.Array:
        """0 .. num_stages - 1."""
        return base.stage(step, num_steps, self.num_stages)

    def targets(
        self,
        inputs: base.Inputs,
        xt: Rows,
        t: Scalars,
        labels: Labels,
        stage: jax.Array,
    ) -> Rows:
        """Targets at times t from two half steps of the teacher."""
        params, ones = base.frozen(inputs, base.TEACHER), jnp.ones_like(t)
        guidance = jnp.where(stage == 0, self.guidance, 1.0)
        half = 2.0**stage / self.finest_steps

        def velocity(x: Rows, t: Scalars) -> Rows:
            if self.guidance == 1:
                return inputs.apply(params, x, t, ones, labels)
            x2, t2, ones2 = (rows.append(a, a, 1) for a in (x, t, ones))
            labels2 = rows.append(labels, jnp.full_like(labels, inputs.null_label), 1)
            v, v_null = rows.detach(inputs.apply(params, x2, t2, ones2, labels2), 1)
            return v_null + guidance * (v - v_null)

        v1 = velocity(xt, t)
        v2 = velocity(base.clipped(xt + half * v1, self.clip), t + half)
        return jax.lax.stop_gradient((v1 + v2) / 2)

    def loss(self, inputs: base.Inputs) -> tuple[jax.Array, base.Metrics]:
        noise_key, time_key = jax.random.split(inputs.key)
        x1, num_rows = inputs.x1, inputs.x1.shape[0]
        x0 = jax.random.normal(noise_key, x1.shape)
        stage = self.stage(inputs.step, inputs.num_steps)
        grid = self.finest_steps / 2 ** (stage + 1)
        t = jnp.floor(jax.random.uniform(time_key, (num_rows,)) * grid) / grid

        xt = base.path(x0, x1, t, self.sigma_min)
        target = self.targets(inputs, xt, t, inputs.labels, stage)
        v = inputs.apply(inputs.params, xt, t, jnp.ones(num_rows), inputs.labels)
        error = base.mean_square(v - target)
        return jnp.mean(error), {"loss_distillation": error}

    def renewed(
        self, emas: dict[str, base.Params], step: jax.Array, num_steps: int
    ) -> dict[str, base.Params]:
        """At the end of a stage the student's average becomes the teacher."""
        ends = self.stage(step + 1, num_steps) > self.stage(step, num_steps)
        teacher = jax.tree.map(
            lambda student, teacher: jnp.where(ends, student, teacher),
            emas[self.target_ema],
            emas[base.TEACHER],
        )
        return emas | {base.TEACHER: teacher}

    def sample(
        self,
        velocity: base.ConditionedFn,
        x0: Rows,
        labels: Labels,
        num_steps: int,
        keys: Keys,
    ) -> Rows:
        """Euler, told d = 1; meant for one step."""
        return samplers.euler(velocity, x0, labels, num_steps, d=1.0)

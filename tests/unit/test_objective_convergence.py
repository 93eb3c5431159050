"""Every method, trained on the Gaussian problem by its own loss, arrives at the true map.

The network is affine in x with coefficients that a small MLP makes of t and d, so the solution is
within its reach; methods with a network of their own have that, on images of one pixel. From noise
x_0 the true map is x_1 = m + s x_0. The pairs of methods that need them are exact.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

from shortcut_tpu.models import NETWORKS, configure
from shortcut_tpu.objectives import OBJECTIVES, Inputs, Objective
from shortcut_tpu.objectives.base import along_rows
from shortcut_tpu.training.train_state import update_emas
from tests.unit.gaussian import NULL_LABEL, Gaussian

pytestmark = pytest.mark.usefixtures("well_compiled")

PROBLEM = Gaussian(mean=0.7, std=0.4)
BATCH = 512
STEPS = 1500
# Larger networks, which have only one map to learn and no times.
FEWER = {"get": 800, "koopman": 1000}
WIDTH = 32
DECAYS = {"evaluation": 0.995, "target": 0.95}
# Times spread more evenly than for images, so that the corner t = 0, d = 1 is seen often.
TIMES = {"time_mean": 0.0, "time_std": 2.0}
SETTINGS = {
    # Enough Euler steps that what is distilled is the flow.
    "live_reflow": {"teacher_steps": 32},
    # So few stages, and neighbours so far apart, that a short training gets through.
    "progressive_distillation": {"finest_steps": 32},
    "consistency_distillation": {"finest_steps": 32},
    "meanflow": TIMES,
    # Two numbers do not tell their time.
    "improved_meanflow": TIMES | {"told_time": True},
    "alpha_flow": TIMES | {"schedule_end": 0.5},
    "split_meanflow": TIMES,
    # Without labels guidance is only noise in the target.
    "improved_shortcut": {"max_guidance": 1.5},
}
# Methods that learn a velocity and not a map are true only in many steps.
SAMPLE_STEPS = {"flow_matching": 128, "diffusion": 128}
# Over |x_0| < 2, where x_1 spans 1.6; one step of flow matching is 0.8 off.
TOLERANCE = 0.15
# Its last stage, the one that counts, has a fifth of the steps.
LOOSER = {"progressive_distillation": 0.25}


def init(key: jax.Array, heads: int) -> Any:
    sizes = (8, WIDTH, WIDTH, 2 * heads)
    keys = jax.random.split(key, len(sizes))
    return [
        (jax.random.normal(k, (m, n)) / m**0.5, jnp.zeros(n))
        for k, m, n in zip(keys, sizes[:-1], sizes[1:], strict=False)
    ]


def apply(
    params: Any, x: jax.Array, t: jax.Array, d: jax.Array, labels: Any, **conditions: Any
) -> jax.Array:
    level = jnp.log2(jnp.maximum(d, 1 / 128)) / 7
    told = conditions.get("guidance", jnp.zeros_like(t))
    h = jnp.stack([t, t**2, t**3, d, d**2, level, t * d, told], axis=-1)
    for index, (kernel, bias) in enumerate(params):
        h = h @ kernel + bias
        h = jnp.tanh(h) if index < len(params) - 1 else h
    slope, offset = jnp.split(along_rows(h.T, h.T[..., None, None, None]), 2)
    return jnp.concatenate([a * x + b for a, b in zip(slope, offset, strict=True)], axis=-1)


SHAPES = {"image_size": 1, "channels": 2, "patch_size": 1, "num_classes": 1}
OPTIONS = {
    "width": 16,
    "depth": 1,
    "num_heads": 1,
    "dtype": "float32",
    "equilibrium": {"injection_depth": 1, "equilibrium_depth": 1, "iterations": 3},
}


@dataclasses.dataclass(frozen=True)
class Affine:
    """The network of most methods."""

    heads: int

    def init(self, key: jax.Array) -> Any:
        return init(key, self.heads)

    def apply(self, *args: Any, **conditions: Any) -> jax.Array:
        return apply(*args, **conditions)


def network_of(objective: Objective) -> Any:
    if not objective.network:
        return Affine(objective.heads)
    return NETWORKS[objective.network](configure(objective.network, OPTIONS, **SHAPES))


@functools.cache
def teacher() -> Any:
    """A model trained by flow matching."""
    return trained(OBJECTIVES["flow_matching"](), init(jax.random.key(3), heads=1))


@functools.partial(jax.jit, static_argnums=0)
def trained(objective: Objective, params: Any) -> Any:
    """The evaluation average after training from these parameters."""
    num_steps = FEWER.get(objective.name, STEPS)
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, num_steps, alpha=0.1))
    decays = DECAYS | ({"teacher": 1.0} if objective.needs_teacher else {})
    model = network_of(objective)

    def step(carry: Any, index: jax.Array) -> tuple[Any, None]:
        params, opt_state, emas = carry
        data_key, key = jax.random.split(jax.random.fold_in(jax.random.key(4), index))
        x0 = jax.random.normal(data_key, (BATCH, 1, 1, 2))
        x1 = PROBLEM.mean + PROBLEM.std * x0

        def loss_fn(params: Any) -> jax.Array:
            return objective.loss(
                Inputs(
                    apply=model.apply,
                    params=params,
                    emas=emas,
                    x1=x1,
                    labels=jnp.zeros(BATCH, jnp.int32),
                    null_label=NULL_LABEL,
                    key=key,
                    step=index,
                    num_steps=num_steps,
                    x0=x0 if objective.needs_pairs else None,
                    model=model,
                )
            )[0]

        updates, opt_state = optimizer.update(jax.grad(loss_fn)(params), opt_state)
        params = optax.apply_updates(params, updates)
        emas = objective.renewed(update_emas(emas, params, decays, index + 1), index, num_steps)
        return (params, opt_state, emas), None

    carry = (params, optimizer.init(params), dict.fromkeys(decays, params))
    return jax.lax.scan(step, carry, jnp.arange(num_steps))[0][2]["evaluation"]


@functools.cache
def model(name: str) -> tuple[Objective, Any]:
    """A method with its settings here, and the network it trained."""
    objective = OBJECTIVES[name](**SETTINGS.get(name, {}))
    fresh = network_of(objective).init(jax.random.key(3))
    return objective, trained(objective, teacher() if objective.needs_teacher else fresh)


@pytest.mark.parametrize("name", [n for n in OBJECTIVES if not OBJECTIVES[n].needs_judges])
def test_one_step_map(name: str) -> None:
    """x_1 = m + s x_0 in one step, or in 128 where the method asks for many."""
    objective, params = model(name)
    x0 = jnp.linspace(-2, 2, 64).reshape(32, 1, 1, 2)
    x1 = objective.sample(
        functools.partial(network_of(objective).apply, params),
        x0,
        jnp.zeros(32, jnp.int32),
        SAMPLE_STEPS.get(name, 1),
        jax.random.split(jax.random.key(0), 32),
    )
    error = float(jnp.max(jnp.abs(x1 - (PROBLEM.mean + PROBLEM.std * x0))))
    assert error < LOOSER.get(name, TOLERANCE)


@pytest.mark.parametrize("t", [0.1, 0.3, 0.7])
def test_high_order_learns_the_acceleration(t: float) -> None:
    """On smoothstep, the straight path at time q = 3t^2 - 2t^3, the flow's acceleration is

        q'' v(x, q) + q'^2 (x - q m) c'' / c,   c^2 = (1 - q)^2 + (q s)^2,  c c'' = 1 + s^2 - c'^2

    for on the straight path x_q = q m + c_q z. The path's own is the first term alone. Next to the
    data, t = 0.9, this small network's velocity is right to 3 % and its derivative wrong by 80 %.
    """
    _, params = model("high_order")
    x, at = jnp.linspace(-2, 2, 64).reshape(32, 1, 1, 2), jnp.full(32, t)
    out = apply(params, x, at, jnp.full(32, 1 / 128), jnp.zeros(32, jnp.int32))
    q, s = 3 * t**2 - 2 * t**3, PROBLEM.std
    c = ((1 - q) ** 2 + (q * s) ** 2) ** 0.5
    bend = (1 + s**2 - ((q - 1 + q * s**2) / c) ** 2) / c**2
    path = (6 - 12 * t) * PROBLEM.velocity(x, jnp.full(32, q))
    exact = path + (6 * t - 6 * t**2) ** 2 * bend * (x - q * PROBLEM.mean)
    error, of_path = (
        float(jnp.sqrt(jnp.mean((found - exact) ** 2) / jnp.mean(exact**2)))
        for found in (out[..., 2:], path)
    )
    assert error < 0.15 and error < max(of_path / 2, 0.05)

"""Power-function averages against their profiles, and lengths that are made after the run."""

import contextlib

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.errors import UserError
from shortcut_tpu.runs.checkpointing import Checkpoints
from shortcut_tpu.runs.snapshots import Snapshots, require_average, restore_average
from shortcut_tpu.training.power_averages import PowerAverage, combination, exponent
from shortcut_tpu.training.train_state import update_emas


def test_a_width_is_the_profiles_standard_deviation():
    """sigma^2 = (g + 1) / ((g + 2)^2 (g + 3)); the paper's .05 and .10 are 16.97 and 6.94."""
    for width in (0.05, 0.1, 0.25):
        g = exponent(width)
        assert (g + 1) / ((g + 2) ** 2 * (g + 3)) == pytest.approx(width**2)
    assert [round(exponent(width), 2) for width in (0.05, 0.1)] == [16.97, 6.94]


def profile(width, steps):
    """The weight of each step: the integral of (g + 1) tau^g / t^(g + 1) over it."""
    edges = (np.arange(steps + 1) / steps) ** (exponent(width) + 1)
    return np.diff(edges)


def test_updates_make_the_profile(float64):
    """With b_t = (1 - 1/t)^(g + 1) step tau of t weighs (tau/t)^(g+1) - ((tau-1)/t)^(g+1)."""
    steps, average = 50, PowerAverage(0.1)
    path = np.random.default_rng(0).normal(size=(steps, 3))

    def step(emas, turn):
        index, params = turn
        return update_emas(emas, params, {"power": average}, index), None

    start = {"power": jnp.full(3, 7.0)}
    emas, _ = jax.lax.scan(step, start, (jnp.arange(1, steps + 1), path))
    np.testing.assert_allclose(emas["power"], profile(0.1, steps) @ path, rtol=1e-12)
    # Far into a training, where 1 - b_t is small: to float32's digits.
    late = jnp.int32(400_000)
    exact = 1 - (1 - np.float64(1) / 400_000) ** (exponent(0.1) + 1)
    assert float(average.share(late)) == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize(("width", "error"), [(0.05, 1e-9), (0.07, 5e-4), (0.15, 1e-3)])
def test_other_widths_are_made_of_snapshots(width, error):
    """Of sixteen snapshots of two averages; the paper's figure 4 has such profiles coincide.

    The parameters go a curve with noise, as in a training."""
    steps, kept = 1600, [(w, s) for s in range(100, 1601, 100) for w in (0.05, 0.1)]
    tau = np.arange(1, steps + 1)[:, None] / steps
    noise = np.random.default_rng(0).normal(size=(steps, 20)).cumsum(0) / steps**0.5
    path = np.sin(tau * np.arange(1, 21)) + 0.1 * noise
    averages = np.stack([profile(w, s) @ path[:s] for w, s in kept])
    made = combination(kept, (width, steps)) @ averages
    direct = profile(width, steps) @ path
    assert np.linalg.norm(made - direct) < error * np.linalg.norm(direct)


@pytest.mark.parametrize("name", ["power:", "power:x", "power:0", "power:0.3", "power:7"])
def test_widths_that_are_none_are_refused(tiny_config, name):
    with pytest.raises(UserError, match="--ema=power:.*: the width may be a number in"):
        require_average(tiny_config, name, "--ema")
    with pytest.raises(UserError, match="power:0.07: the run has kept no power averages"):
        require_average(tiny_config, "power:0.07", "--ema")


def test_a_run_keeps_snapshots_and_makes_averages_of_them(tiny_config, tmp_path):
    """As `train` does at each step, on an array; what has been saved is not saved again."""
    config = tiny_config.copy_and_resolve_references()
    with config.unlocked():
        config.power_emas.widths, config.power_emas.snapshots = (0.05, 0.1), 4
        config.train.num_steps = 42
    workdir = epath.Path(tmp_path)
    powers = {f"power:{w:g}": PowerAverage(w) for w in (0.05, 0.1, 0.08)}
    emas = {name: {"w": jnp.zeros((2, 8))} for name in powers}
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = {"w": jax.ShapeDtypeStruct((2, 8), jnp.float32, sharding=sharding)}
    path = np.random.default_rng(1).normal(size=(43, 2, 8)).cumsum(0)
    update = jax.jit(lambda emas, w, step: update_emas(emas, {"w": w}, powers, step))
    saved = []
    for _ in range(2):
        with contextlib.closing(Snapshots(workdir, config)) as snapshots:
            for step in range(1, 43):
                if len(saved) < 5:
                    emas = update(emas, path[step], step)
                if snapshots.due(step):
                    snapshots.save(step, emas)
                    saved.append(step)
    assert saved == 2 * [10, 20, 30, 40, 42]
    with Checkpoints(workdir / "checkpoints", 1, config) as checkpoints:
        checkpoints.save(42, {"emas": emas})
    step, made = restore_average(workdir, config, abstract, "power:0.08")
    exact = np.asarray(emas["power:0.08"]["w"])
    assert step == 42
    assert np.linalg.norm(made["w"] - exact) < 0.02 * np.linalg.norm(exact)
    _, same = restore_average(workdir, config, abstract, "power:0.1")
    np.testing.assert_array_equal(same["w"], emas["power:0.1"]["w"])

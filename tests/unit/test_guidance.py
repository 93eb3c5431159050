"""Guidance of samples: by step count, within an interval of times, and how it is written."""

import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.autoencoders import load_autoencoder
from data_pipeline.errors import UserError
from shortcut_tpu.evaluation.evaluator import table
from shortcut_tpu.evaluation.generator import make_generator
from shortcut_tpu.sampling import samplers
from shortcut_tpu.sampling.guidance import Guidance
from shortcut_tpu.training.experiment import Experiment


@pytest.mark.parametrize(
    ("text", "strengths"),
    [("1", [1, 1, 1]), (1.5, [1.5] * 3), ("128:1.5", [1, 1, 1.5]), ("2,4:1,128:1.5", [2, 1, 1.5])],
)
def test_a_strength_for_each_step_count(text, strengths):
    guidance = Guidance.parse(text)
    assert [guidance.at(n) for n in (1, 4, 128)] == strengths
    assert Guidance.parse(str(guidance)) == guidance


@pytest.mark.parametrize(
    ("text", "interval", "message"),
    [
        ("much", (0, 1), "'much' is neither a strength"),
        ("128:", (0, 1), "neither"),
        ("1.5,2", (0, 1), "twice"),
        ("4:2,4:3", (0, 1), "twice"),
        ("nan", (0, 1), "not in"),
        ("-1", (0, 1), "not in"),
        ("0:2", (0, 1), "below 1"),
        ("1", (0.5, 0.5), "interval 0.5, 0.5"),
        ("1", (0, 1.5), "interval"),
        ("1", (0,), "neither"),
    ],
)
def test_what_is_no_guidance_is_refused(text, interval, message):
    with pytest.raises(UserError, match=message):
        Guidance.parse(text, interval)


def test_only_times_in_the_interval_are_guided():
    """v = t + y: in the interval v_null + w (v_y - v_null), outside of it v_y; the end 1 is in."""

    def velocity(x, t, d, labels, **conditions):
        return x * 0 + (t + labels)[:, None]

    t = jnp.array([0.0, 0.25, 0.5, 0.75, 1.0])
    x, d, labels = jnp.zeros((5, 2)), jnp.ones(5), jnp.full(5, 2)
    for interval, inside in (((0.25, 0.75), [0, 1, 1, 0, 0]), ((0.5, 1.0), [0, 0, 1, 1, 1])):
        guided = samplers.guided(velocity, 3.0, null_label=10, interval=interval)
        strength = np.where(inside, 3.0, 1.0)
        expected = (t + 10) + strength * (2 - 10)
        np.testing.assert_allclose(guided(x, t, d, labels), np.stack([expected] * 2, 1), rtol=1e-6)


def test_guidance_of_one_step_count_changes_no_others(tiny_config, devices):
    config = tiny_config.copy_and_resolve_references()
    with config.unlocked():
        config.evaluation.guidance = "2:3"
    experiment = Experiment.from_config(config, devices[:1])
    # Weights of a network that tells labels apart, which a fresh one does not.
    params = experiment.init_state().params
    params["final"]["project"]["kernel"] += 0.1
    params["final"]["modulation"]["kernel"] += 0.1
    identity = load_autoencoder("identity")
    plain = make_generator(experiment, identity, guidance=Guidance())
    guided = make_generator(experiment, identity)
    assert str(guided.guidance) == "1,2:3"
    draws = {n: [g(params, [0, 1], [3, 5], n) for g in (plain, guided)] for n in (1, 2)}
    np.testing.assert_array_equal(*draws[1])
    assert np.abs(draws[2][0] - draws[2][1]).max() > 1e-3


def test_the_table_says_which_columns_are_guided():
    scores = {"fid": {1: 40.0, 128: 15.0, "reconstruction": 1.0}}
    assert len(table(scores, Guidance())) == 2
    line = table(scores, Guidance.parse("128:1.5"))[1].split()
    assert line == ["guidance", "1", "1.5", "1"]

"""What keys of a config may be: each says so, and a value that it may not have is one line."""

import copy
import functools

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import pytest

from configs import common
from configs.limits import (
    Either,
    Flag,
    Limit,
    Named,
    OneOf,
    PowerOfTwo,
    Real,
    Several,
    Share,
    ShareOrRest,
    Text,
    Whole,
)
from data_pipeline.errors import UserError
from data_pipeline.tasks import TASKS
from shortcut_tpu.cli import config as config_lib
from shortcut_tpu.cli.schema import check
from shortcut_tpu.evaluation.protocols import PROTOCOLS
from shortcut_tpu.models import NETWORKS
from shortcut_tpu.models.attention import KINDS
from shortcut_tpu.objectives import OBJECTIVES
from shortcut_tpu.training.experiment import Experiment
from tests.unit.test_fuzz_files import FUZZ

LIMITS = common.get_limits()
ANYTHING = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.just((0,))
)


def near(limit: Limit) -> list:
    """Values at the ends of a limit, and of other types: some are inside, most are not."""
    match limit:
        case Whole(low, high):
            ends = [low - 1, low, low + 0.5, str(low), high, high + 1]
        case Real(low, high):
            ends = [e for e in (low - 1, low, high, high + 1) if abs(e) < float("inf")]
        case Share() | ShareOrRest():
            ends = [0.0, 1.0, 0.5, 1 / 3, 0.3, 2, -0.5, 1e-320, 0.75]
        case PowerOfTwo():
            ends = [0, 1, 2, 3, 64, 64.0, -2]
        case OneOf():
            ends = [*limit.choices, "nonsense", f" {limit.choices[0]}"]
        case Flag():
            ends = [True, False, 0, 1]
        case Text():
            ends = ["", "ä b", "two\nlines", "nul\0", b"bytes"]
        case Either(first, second):
            ends = [*near(first), *near(second)]
        case Several(each):
            ends = [(), [], *((value,) for value in near(each)), "text"]
        case Named(each):
            ends = [{"any": value} for value in near(each)]
        case _:
            raise AssertionError(f"{limit!r}: a kind of limit that no test knows")
    return [*ends, None, True, float("nan"), float("inf"), -float("inf"), 10**400, "", ()]


@functools.cache
def digits() -> dict:
    return config_lib.load("digits").to_dict()


def changed(key: str, value):
    """The digits' config with one value that nobody checked."""
    values = copy.deepcopy(digits())
    group = values
    *path, last = key.split(".")
    for name in path:
        group = group[name]
    group[last] = value
    return ConfigDict(values)


def refusal(config) -> str | None:
    """The line that a config is refused with."""
    try:
        check(config)
    except UserError as error:
        line = str(error)
        assert line and len(line.splitlines()) == 1 and len(line) < 400, line
        return line
    return None


def test_every_key_has_a_limit_that_admits_its_default():
    defaults = common.get_config()
    config_lib.check_values(defaults)
    leaves = {key for key, _ in config_lib.leaves(defaults)}
    groups = {f"{key}." for key, limit in LIMITS.items() if isinstance(limit, Named)}
    own = {key for key in leaves if not key.startswith(tuple(groups))}
    assert own | {group[:-1] for group in groups} == set(LIMITS)


def test_choices_are_those_that_there_are():
    """configs/common.py imports nothing, so it repeats names; none is missing or too many."""
    assert {key: set(LIMITS[key].choices) for key in ("objective.name", "model.network")} == {
        "objective.name": set(OBJECTIVES),
        "model.network": set(NETWORKS),
    }
    assert set(LIMITS["evaluation.protocol"].choices) == set(PROTOCOLS)
    assert set(LIMITS["model.attention"].choices) == set(KINDS)
    assert set(LIMITS["data.task"].choices) == {"", *TASKS}


@pytest.mark.parametrize("name", config_lib.names())
def test_every_config_is_admitted(name):
    assert refusal(config_lib.load(name)) is None


@pytest.mark.parametrize("key", LIMITS)
def test_ends_of_every_limit(key):
    """Each value at an end is admitted by `check`, or refused by one line that names the key."""
    limit = LIMITS[key]
    refused = 0
    for value in near(limit):
        config = changed(key, value)
        line = refusal(config)
        found = config
        for name in key.split("."):
            found = found[name]
        if limit.admits(value):
            # What remains are contradictions with other keys.
            assert line is None or f"it may be {limit}" not in line, (value, line)
        else:
            refused += 1
            assert line is not None and line.startswith(key), (value, line)
            assert str(limit.each if isinstance(limit, Named) else limit) in line or "." in line
    assert refused >= 3


@settings(FUZZ, max_examples=60)
@given(key=st.sampled_from(sorted(LIMITS)), value=ANYTHING)
def test_anything_anywhere_is_admitted_or_refused_by_name(key, value):
    line = refusal(changed(key, value))
    if not LIMITS[key].admits(value):
        assert line is not None and line.startswith(key), line


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer.warmup_steps": 2_001}, r"warmup_steps=2001: it may be at most .*=2000"),
        ({"model.num_heads": 3}, r"model.width=128 must be a multiple of 4 and of .*heads=3"),
        ({"model.patch_size": 3}, "model.patch_size=3 does not divide the latents' side, 8"),
        ({"data.num_classes": 0}, "data.num_classes=0: it may be at least 1"),
        ({"data.horizon": 8}, "model.network='dit': it may be policy where data.horizon"),
        ({"data.latent_std": (1.0,)}, "data.latent_mean and data.latent_std have 0 and 1 numbers"),
        ({"model.network": "policy"}, "model.network='policy': it may be"),
        ({"emas": {"target": 0.9}}, "an average of the weights named emas.evaluation"),
        ({"emas": {"evaluation": 0.9}}, "an average of the weights named emas.target"),
        (
            {"objective.name": "diffusion", "objective.diffusion.diffusion_steps": 16},
            r"evaluation.steps=\(1, 4, 32\): it may be at most .*diffusion_steps=16",
        ),
        (
            {"objective.live_reflow.teacher_steps": 256},
            "live_reflow.teacher_steps=256: it may be at most finest_steps=128",
        ),
        (
            {"objective.improved_shortcut.sample_guidance": 9.0},
            "improved_shortcut.sample_guidance=9.0: it may be at most max_guidance=1",
        ),
        (
            {"objective.alpha_flow.schedule_start": 1.0},
            "alpha_flow.schedule_start=1.0: it may be below schedule_end=1.0",
        ),
        ({"train.num_step": 4}, "train.num_step: no such key; the nearest is --config.train.num_s"),
    ],
)
def test_keys_that_do_not_go_together(changes, message):
    config = copy.deepcopy(digits())
    for key, value in changes.items():
        *path, last = key.split(".")
        group = config
        for name in path:
            group = group[name]
        group[last] = value
    with pytest.raises(UserError, match=message):
        check(config_lib.completed(config))


@pytest.mark.parametrize(
    "changes",
    [
        {"model.depth": 1, "model.width": 4, "model.num_heads": 1, "model.mlp_ratio": 0.25},
        {"model.patch_size": 8, "model.unroll": 1, "optimizer.b1": 0, "optimizer.b2": 0.0},
        {"seed": 2**32 - 1, "batch_size": 2, "emas": {"evaluation": 0.0, "target": 0}},
        {"optimizer.name": "muon", "optimizer.momentum": 0.0, "optimizer.mu_dtype": "bfloat16"},
        {"objective.shortcut.bootstrap_share": 1.0, "objective.shortcut.finest_steps": 2},
    ],
)
def test_the_ends_of_limits_can_be_built(changes):
    """All shapes of the state, and the step traced over them; nothing is compiled."""
    config = copy.deepcopy(digits())
    for key, value in ({"model.depth": 1, "model.unroll": 1} | changes).items():
        *path, last = key.split(".")
        functools.reduce(lambda group, name: group[name], path, config)[last] = value
    admitted = config_lib.completed(config)
    check(admitted)
    experiment = Experiment.from_config(admitted, jax.devices()[:1])
    fields = {"mean": (jnp.float16, (8, 8, 1)), "label": (jnp.int32, ())}
    batch = experiment.abstract_batch(fields)
    state, metrics = jax.eval_shape(experiment.train_step, experiment.abstract_state, batch)
    assert metrics["loss"].shape == ()
    assert jax.tree.map(jnp.shape, state.params) == jax.tree.map(
        jnp.shape, experiment.abstract_state.params
    )
    jax.random.key(admitted.seed)


def test_a_key_that_is_missing():
    config = config_lib.load("digits").copy_and_resolve_references()
    with config.unlocked():
        del config.train.num_steps
    assert refusal(config) == (
        "train.num_steps: the config lacks it; it may be a whole number from 1 to 2^31 - 1"
    )

"""Methods bring their papers' recipes: which, below what a user sets, and that each starts so."""

from collections.abc import Iterator
import functools
import json
from pathlib import Path
from typing import Any
import warnings

from absl import flags
from etils import epath
import jax
from ml_collections import ConfigDict, config_flags
import numpy as np
import pytest

from configs import recipes
from data_pipeline.autoencoders import load_autoencoder
from data_pipeline.errors import UserError
from shortcut_tpu.cli import config as config_lib
from shortcut_tpu.compare import plan
from shortcut_tpu.config_reference import reference
from shortcut_tpu.evaluation.generator import make_generator
from shortcut_tpu.objectives import OBJECTIVES
from shortcut_tpu.runs.checkpointing import Checkpoints
from shortcut_tpu.runs.workdir import check_config
from shortcut_tpu.training.experiment import Experiment

# What the papers and their official code say of a run on ImageNet 256x256 at DiT-B/2.
PUBLISHED: dict[str, dict[str, Any]] = {
    # arXiv 2410.12557, Table 3 and section 5.
    "shortcut": {
        "optimizer.weight_decay": 0.1,
        "optimizer.b2": 0.999,
        "emas.evaluation": 0.999,
        "model.faithful": True,
        "objective.shortcut.guidance": 1.5,
        "evaluation.guidance": "128:1.5",
        "train.num_steps": 800_000,
    },
    # arXiv 2505.13447, Table 4.
    "meanflow": {
        "optimizer.learning_rate": 1e-4,
        "optimizer.weight_decay": 0.0,
        "optimizer.b2": 0.95,
        "optimizer.schedule": "constant",
        "emas.evaluation": 0.9999,
        "batch_size": 256,
        "model.faithful": False,
        "model.dtype": "float32",
        "objective.meanflow.interval_share": 0.25,
        "objective.meanflow.time_mean": -0.4,
        "objective.meanflow.time_std": 1.0,
        "objective.meanflow.guidance": 0.2,
        "objective.meanflow.guidance_mix": 0.92,
        "objective.meanflow.weight_power": 1.0,
        "objective.meanflow.label_dropout": 0.1,
        "evaluation.guidance": "1",
    },
    # arXiv 2512.02012, official training and evaluation configs.
    "improved_meanflow": {
        "optimizer.b2": 0.95,
        "optimizer.weight_decay": 0.0,
        "batch_size": 1024,
        "data.standardize": True,
        "objective.improved_meanflow.interval_share": 0.5,
        "objective.improved_meanflow.max_guidance": 8.0,
        "objective.improved_meanflow.sample_guidance": 8.0,
        "objective.improved_meanflow.sample_interval": (0.35, 0.6),
    },
    # arXiv 2510.20771.
    "alpha_flow": {
        "optimizer.clip_norm": 16.0,
        "emas.evaluation": 0.9999,
        "optimizer.b2": 0.95,
        "objective.alpha_flow.interval_share": 0.75,
        "objective.alpha_flow.guidance": 1.0,
        "objective.alpha_flow.guidance_mix": 0.5,
    },
    # iSM's twin averages and strengths.
    "improved_shortcut": {
        "emas.target": 0.95,
        "emas.evaluation": 0.9999,
        "objective.improved_shortcut.max_guidance": 4.5,
        "objective.improved_shortcut.guidance_interval": (0.3, 1.0),
    },
    # arXiv 2604.28190, official code: post-training of iMF.
    "fd_loss": {
        "batch_size": 1024,
        "train.num_steps": 125_000,
        "optimizer.learning_rate": 1e-6,
        "optimizer.schedule": "cosine",
        "optimizer.warmup_steps": 6_250,
        "optimizer.b2": 0.95,
        "optimizer.weight_decay": 0.0,
        "data.standardize": True,
        "objective.fd_loss.decay": 0.999,
        "objective.fd_loss.epsilon": 0.01,
    },
    # arXiv 2507.03738, official code.
    "flow_anchored": {
        "batch_size": 1024,
        "optimizer.learning_rate": 1e-4,
        "optimizer.weight_decay": 0.0,
        "optimizer.b2": 0.999,
        "optimizer.clip_norm": 1.0,
        "objective.flow_anchored.guidance": 1.75,
        "objective.flow_anchored.guidance_interval": (0.125, 1.0),
        "objective.flow_anchored.time_mean": 0.8,
        "objective.flow_anchored.time_std": 1.6,
        "power_emas.widths": (0.2,),
    },
    # arXiv 2401.08639 and 2505.13358, official code.
    "get": {"batch_size": 128, "optimizer.learning_rate": 1e-4, "optimizer.weight_decay": 0.0},
    "koopman": {
        "batch_size": 128,
        "optimizer.learning_rate": 3e-4,
        "optimizer.weight_decay": 0.0,
        "emas.evaluation": 0.9999,
        "objective.koopman.dropout": 0.1,
        "objective.koopman.latent_noise": 0.4,
    },
    # The paper's Table 1: its codebase, a guided teacher, pairs of 128 steps.
    "flow_matching": {"evaluation.guidance": "128:1.5", "optimizer.weight_decay": 0.1},
    "progressive_distillation": {"objective.progressive_distillation.guidance": 1.5},
    "live_reflow": {"objective.live_reflow.guidance": 1.5},
    "reflow": {"comparison.pair_steps": 128, "evaluation.guidance": "128:1.5"},
}


@pytest.mark.parametrize("method", PUBLISHED)
def test_a_method_on_imagenet_is_as_published(method: str) -> None:
    found = dict(config_lib.leaves(config_lib.load("imagenet256_b", method)))
    assert {key: found[key] for key in PUBLISHED[method]} == PUBLISHED[method]


def test_guidance_of_meanflow_is_two_and_a_half() -> None:
    """w / (1 - k), arXiv 2505.13447, equation 21."""
    own = config_lib.load("imagenet256_b", "meanflow").objective.meanflow
    assert own.guidance / (1 - own.guidance_mix) == pytest.approx(2.5)


def test_every_method_has_a_recipe_and_no_other_keys_than_its_own() -> None:
    assert set(recipes.RECIPES) == set(OBJECTIVES)
    for method in OBJECTIVES:
        groups = {k.split(".")[1] for k in recipes.values(method) if k.startswith("objective.")}
        assert groups <= {OBJECTIVES[method].group}


def parsed(*arguments: str) -> ConfigDict:
    """The config of a command line."""
    values = flags.FlagValues()
    prepared = config_lib.prepare_arguments(["train", *arguments])
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=prepared)
    with recipes.choosing(config_lib.taken_recipe(prepared)), warnings.catch_warnings():
        # ml_collections loads files in a way that Python is to lose.
        warnings.simplefilter("ignore", DeprecationWarning)
        values(prepared)
    return values.config


def test_the_command_line_chooses_the_recipe_and_wins_over_it() -> None:
    config = parsed(
        "--config=imagenet256_b", "--config.objective.name=meanflow", "--config.optimizer.b2=0.99"
    )
    assert (config.objective.name, config.objective.recipe) == ("meanflow", "meanflow")
    assert (config.optimizer.b2, config.optimizer.weight_decay) == (0.99, 0.0)
    assert config.emas.to_dict() == {"evaluation": 0.9999}
    (line,) = config_lib.recipe_lines(config)
    assert line == "as published for meanflow, but for optimizer.b2"
    # Another one's, and a key that only its recipe makes.
    other = parsed(
        "--config=imagenet256_b",
        "--config.objective.name=improved_shortcut",
        "--config.emas.target=0.9",
    )
    assert other.emas.to_dict() == {"evaluation": 0.9999, "target": 0.9}
    mixed = parsed(
        "--config=imagenet256_b",
        "--config.objective.name=meanflow",
        "--config.objective.recipe=shortcut",
    )
    assert (mixed.objective.name, mixed.optimizer.weight_decay) == ("meanflow", 0.1)
    digits = parsed("--config=digits", "--config.objective.name=meanflow")
    assert (digits.objective.recipe, digits.optimizer.weight_decay) == ("", 0.01)
    assert config_lib.recipe_lines(digits) == []


def test_a_files_choices_win_over_the_recipe(tmp_path: Path) -> None:
    """Its own values, even those of the defaults, and its own method."""
    file = tmp_path / "mine.py"
    file.write_text(
        "from configs import imagenet256_b\n"
        "def get_config():\n"
        "    config = imagenet256_b.get_config()\n"
        "    config.objective.name = 'meanflow'\n"
        "    config.optimizer.weight_decay = 0.1\n"
        "    return config\n"
    )
    for config in (config_lib.load(str(file)), parsed(f"--config={file}")):
        assert config.objective.recipe == "meanflow"
        assert (config.optimizer.weight_decay, config.optimizer.b2) == (0.1, 0.95)
    celeba = config_lib.load("celebahq256_b", "meanflow")
    assert (celeba.batch_size, celeba.objective.meanflow.guidance_mix) == (64, 0.0)
    assert (celeba.objective.meanflow.label_dropout, celeba.evaluation.guidance) == (0.0, "1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--config=digits", "--config.objective.recipe=meanflow"), "takes no recipe"),
        (("--config=imagenet256_b", "--config.objective.recipe=x"), "none of shortcut, "),
    ],
)
def test_a_recipe_that_is_not_to_be_had_is_refused(
    arguments: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        parsed(*arguments)


def test_what_came_from_the_method_is_shown_and_saved(tmp_path: Path) -> None:
    config = parsed(
        "--config=imagenet256_b", "--config.objective.name=meanflow", "--config.optimizer.b1=0.8"
    )
    text = reference(config)
    assert "| `b1` | `0.8` | a number" in text
    assert "| `b2` | `0.95` of meanflow | a number" in text
    config_lib.save(config, tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["objective"]["recipe"] == "meanflow"
    # The same command goes on, another method's recipe does not.
    check_config(saved, config, allow_change=False)
    with pytest.raises(UserError, match=r"objective.recipe: 'meanflow' -> 'shortcut'.*b2: 0.95"):
        check_config(saved, parsed("--config=imagenet256_b"), allow_change=False)
    assert config_lib.from_recipe(config_lib.restore(tmp_path))["optimizer.b2"]


@pytest.mark.parametrize("method", OBJECTIVES)
def test_a_method_starts_on_the_imagenet_config(method: str) -> None:
    """Its step and its samplers, traced on latents of the real shape by a narrow network.

    test_objectives computes each, on the digits.
    """
    config = config_lib.load("imagenet256_b", method).copy_and_resolve_references()
    with config.unlocked():
        config.model.update(width=16, depth=1, num_heads=1)
        config.model.equilibrium.update(injection_depth=1, equilibrium_depth=1, iterations=2)
        config.model.koopman.code_channels = 1
        config.batch_size = 64
    experiment = Experiment.from_config(config, jax.devices()[:1])
    latent = (np.float16, experiment.latent_shape)
    batch = experiment.abstract_batch({"mean": latent, "noise": latent, "label": (np.int32, ())})
    state, metrics = jax.eval_shape(experiment.train_step, experiment.abstract_state, batch)
    as_before = jax.tree.map(
        lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), state, experiment.abstract_state
    )
    assert all(jax.tree.leaves(as_before))
    assert "loss" in metrics
    generator = make_generator(experiment, load_autoencoder("identity"))
    rows = jax.ShapeDtypeStruct((2,), np.uint32), jax.ShapeDtypeStruct((2,), np.int32)
    for num_steps in experiment.objective.step_counts((1, 128)):
        sample = functools.partial(generator.latents, num_steps=num_steps)
        assert jax.eval_shape(sample, state.emas["evaluation"], *rows).shape == (2, 32, 32, 4)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Iterator[epath.Path]:
    """A folder in which methods share a teacher and its pairs, on one device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda: jax.local_devices()[:1])
        yield epath.Path(tmp_path_factory.mktemp("together"))


def cut(method: str, records: Path) -> ConfigDict:
    """The ImageNet config for a small network on records of the digits."""
    config = config_lib.load("imagenet256_b", method).copy_and_resolve_references()
    with config.unlocked():
        config.batch_size = 16
        config.data.update(path=str(records), image_size=8, channels=1, num_classes=10)
        config.data.autoencoder = "identity"
        config.model.update(width=8, depth=1, num_heads=1, patch_size=4)
        config.model.equilibrium.update(injection_depth=1, equilibrium_depth=1, iterations=1)
        config.model.koopman.code_channels = 1
        config.train.num_steps = 2
        config.evaluation.update(num_samples=8, batch_size=8, protocol="fd_pixel")
        config.comparison.update(num_pairs=16)
    return config


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=[] if name == "meanflow" else [pytest.mark.pods])
        for name, objective in OBJECTIVES.items()
        # Post-training is no method of compare's.
        if not objective.needs_judges
    ],
)
def test_a_method_makes_its_first_step_save_and_evaluation(
    method: str, digits_path: Path, together: epath.Path
) -> None:
    """After its teacher and its pairs, if it takes them: by compare's own plan."""
    config, teacher = (cut(name, digits_path) for name in (method, "flow_matching"))
    chosen = plan(config, method, seed=0, workdir=together, reference=teacher)
    scored = chosen.scored
    last, steps = scored.config.train.num_steps, OBJECTIVES[method]().step_counts((1, 128))
    with scored.config.unlocked():
        scored.config.evaluation.update(every_steps=last, steps=(1, 128))
    chosen.run()
    assert Checkpoints(scored.workdir / "checkpoints", 1, scored.config).newest() == last
    found = json.loads((scored.workdir / "evaluations" / f"{last}.json").read_text())
    assert list(found["fd_pixel"]) == list(map(str, steps))
    assert all(distance > 0 for distance in found["fd_pixel"].values())

"""Configs by name and by path, and what a mistyped key gets to hear."""

import json

import pytest

from configs import common
from data_pipeline.errors import UserError
from shortcut_tpu.cli import config as config_lib


@pytest.mark.parametrize("name", config_lib.names())
def test_every_config_loads_and_holds_only_documented_keys(name):
    config = config_lib.load(name)
    documented = set(dict(config_lib.leaves(common.get_config())))
    rates = {f"comparison.learning_rates.{name}" for name in common.get_objectives()}
    assert set(dict(config_lib.leaves(config))) - documented <= {"emas.target"} | rates
    for key in ("seed", "batch_size", "train.num_steps", "checkpoint.every_steps"):
        assert key in documented


def test_papers_hyperparameters():
    """arXiv 2410.12557, Table 3: the rows that this project names after it."""
    for name, batch, steps in [
        ("celebahq256_b", 64, 400_000),
        ("imagenet256_b", 256, 800_000),
        ("imagenet256_xl", 256, 800_000),
    ]:
        config = config_lib.load(name)
        assert (config.batch_size, config.train.num_steps) == (batch, steps)
        optimizer = config.optimizer
        assert (optimizer.learning_rate, optimizer.weight_decay) == (1e-4, 0.1)
        assert (optimizer.b1, optimizer.b2, optimizer.schedule) == (0.9, 0.999, "constant")
        assert config.emas.to_dict() == {"evaluation": 0.999}
        assert config.objective.shortcut.target_ema == "evaluation"
        assert config.objective.shortcut.bootstrap_share == 0.25
        guided = name != "celebahq256_b"
        assert config.objective.shortcut.guidance == (1.5 if guided else 1.0)
        assert config.model.faithful


def test_names_become_paths_and_overrides_stay():
    arguments = ["train", "--config=digits", "--config.optimizer.b2=0.99", "--workdir=w"]
    program, config, *rest = config_lib.prepare_arguments(arguments)
    assert program == "train"
    assert config.endswith("configs/digits.py")
    assert rest == arguments[2:]
    assert config_lib.prepare_arguments(["train", "--config", "digits"])[2].endswith("digits.py")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.train.num_step=3", "no such key; the nearest is --config.train.num_steps"),
        ("--config.batchsize=3", "the nearest is --config.batch_size"),
        ("--config.model.learning_rate=3", "the nearest is --config.optimizer.learning_rate"),
        ("--config.optimizer=3", "--config.optimizer is a group of keys"),
        ("--config.xyzzy=3", "configs/common.py lists them all"),
    ],
)
def test_unknown_keys_name_the_nearest(override, message):
    with pytest.raises(UserError, match=message):
        config_lib.prepare_arguments(["train", "--config=digits", override])


def test_missing_and_broken_config_files(tmp_path):
    with pytest.raises(UserError, match="--config=digit: neither a file .* nor one of .*digits"):
        config_lib.load("digit")
    broken = tmp_path / "broken.py"
    broken.write_text("def get_config():\n    return undefined\n")
    with pytest.raises(UserError, match=r"broken.py: NameError: name 'undefined'"):
        config_lib.load(str(broken))


def test_resolved_config_survives_the_workdir(tmp_path):
    config = config_lib.load("digits")
    config_lib.save(config, tmp_path)
    restored = config_lib.restore(tmp_path)
    assert json.loads(restored.to_json()) == json.loads(config.to_json())
    with pytest.raises(UserError, match=r"config.json: no such file; is .* the --workdir"):
        config_lib.restore(tmp_path / "other")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json: not a config"):
        config_lib.restore(tmp_path)


def test_an_earlier_releases_config_gets_the_keys_it_did_not_have():
    """Whatever is missing is as by default, and no change; averages are the run's own."""
    config = config_lib.load("imagenet256_b")
    saved = json.loads(config.to_json())
    del saved["optimizer"]["mu_dtype"], saved["evaluation"]["features"], saved["comparison"]
    saved["emas"] = {"evaluation": 0.5}
    found = config_lib.completed(saved)
    assert (found.optimizer.mu_dtype, found.evaluation.features) == ("float32", "")
    assert found.emas.to_dict() == {"evaluation": 0.5}
    assert config_lib.differences(saved, config) == ["emas.evaluation: 0.5 -> 0.999"]
    # It was a number once.
    plain = config_lib.load("digits")
    saved = json.loads(plain.to_json())
    saved["evaluation"]["guidance"] = 1.0
    assert config_lib.differences(saved, plain) == []

"""The reference of the config keys, made from configs/common.py."""

from configs import common
from shortcut_tpu import config as config_lib
from shortcut_tpu.config_reference import meanings, reference


def test_every_key_has_one_meaning():
    known = [key for keys in meanings() for key in keys]
    assert sorted(known) == sorted(key for key, _ in config_lib.leaves(common.get_config()))
    assert {key: "" for keys, text in meanings().items() for key in keys if len(text) < 5} == {}


def test_values_are_those_of_the_config():
    text = reference(config_lib.load("digits"))
    assert "| `batch_size` | `256` | Global batch: rows a step over all hosts together. |" in text
    assert (
        "| `width`, `depth`, `num_heads`, `patch_size`, `mlp_ratio` | `128`, `4`, `4`, `4`" in text
    )
    assert "## `objective.shortcut`" in text
    assert "| `clip` | `4.0` | bound on states and targets that the model makes itself" in text
    assert "| `bootstrap_share` | `0.5` | Paper 1/4, official code 1/8. |" in text
    assert "| `evaluation`, `target` | `0.99`, `0.8` | Decay of each average" in text

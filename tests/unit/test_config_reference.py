"""The reference of the config keys, made from configs/common.py."""

from configs import common
from shortcut_tpu.cli import config as config_lib
from shortcut_tpu.config_reference import meanings, reference


def test_every_key_has_one_meaning():
    known = [key for keys in meanings() for key in keys]
    assert sorted(known) == sorted(common.get_limits())
    assert {key: "" for keys, text in meanings().items() for key in keys if len(text) < 5} == {}


def test_values_are_those_of_the_config():
    lines = reference(config_lib.load("digits")).splitlines()
    assert (
        "| `batch_size` | `256` | a whole number from 1 to 2^31 - 1 | Global batch: rows a step "
        "over all hosts together. |"
    ) in lines
    assert "| `depth` | `4` | a whole number from 1 to 2^31 - 1 | as above |" in lines
    assert "## `objective.shortcut`" in lines
    assert (
        "| `bootstrap_share` | `0.5` | a unit fraction 1, 1/2, 1/3, ... | Paper 1/4, official code "
        "1/8. |"
    ) in lines
    average = lines.index("## `emas`")
    assert lines[average + 4].startswith("| `evaluation` | `0.99` | a number in [0, 1) | Decay of ")
    assert lines[average + 5] == "| `target` | `0.8` | a number in [0, 1) | as above |"
    assert any(line.startswith("| `reflow` | `0.001` | a finite number above 0") for line in lines)

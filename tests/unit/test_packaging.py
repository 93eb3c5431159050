"""What the project says of itself: scripts, version, licence, citation."""

import importlib.util
from pathlib import Path
import tomllib

import pytest
import yaml

import shortcut_tpu
from shortcut_tpu.cli import scripts

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())


@pytest.mark.parametrize("name", sorted(PROJECT["scripts"]))
def test_a_script_runs_the_command_of_its_name(monkeypatch, name):
    ran = []
    monkeypatch.setattr(
        scripts.runpy, "run_module", lambda module, **how: ran.append((module, how))
    )
    module, function = PROJECT["scripts"][name].split(":")
    assert module == "shortcut_tpu.cli.scripts"
    getattr(scripts, function)()
    ((module, how),) = ran
    assert how == {"run_name": "__main__", "alter_sys": True}
    assert module.rpartition(".")[2] == name.removeprefix("shortcut-").replace("-", "_")
    assert 'if __name__ == "__main__":' in Path(importlib.util.find_spec(module).origin).read_text()


def test_the_citation_is_of_this_version_and_names_the_paper():
    assert CITATION["version"] == shortcut_tpu.__version__
    assert CITATION["license"] == PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()[:200]
    paper = CITATION["preferred-citation"]
    assert paper["title"] == "One Step Diffusion via Shortcut Models"
    assert [author["family-names"] for author in paper["authors"]] == [
        *("Frans", "Hafner", "Levine", "Abbeel")
    ]
    assert paper["identifiers"][0]["value"] == "arXiv:2410.12557"

"""`measure` on the processes of a pod: all call each program equally often, and one tells."""

import json

import pytest

from launch.local_pod import run_on_hosts
from tests.multihost.pods import CONFIG

pytestmark = pytest.mark.pods


def test_two_hosts_measure_together(tmp_path, capfd):
    figures = tmp_path / "figures.json"
    arguments = ["shortcut_tpu.measure", f"--config={CONFIG}", "--config.mesh.fsdp=-1"]
    run_on_hosts(
        [*arguments, "--rounds=1", "--steps=2", f"--json={figures}"],
        hosts=2,
        chips_per_host=2,
        logs=tmp_path / "logs",
    )
    found = json.loads(figures.read_text())
    assert found["devices"] == found["mesh"]["fsdp"] == 4
    assert [len(program["seconds"]) for program in found["programs"]] == [1] * 5
    said = capfd.readouterr().out
    assert said.count("train step over flow matching's: ") == 1

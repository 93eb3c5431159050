"""An evaluation that was killed goes on where it was, and comes to the same numbers."""

import os
import shutil
import signal

import pytest

from tests.multihost import pods

pytestmark = pytest.mark.pods

STEPS = ("1", "2", "4", "512")


def test_a_killed_evaluation_goes_on(tmp_path, lab):
    def arguments(name: str) -> list[str]:
        shutil.copytree(lab.unbroken, tmp_path / name)
        return [
            *("-m", "shortcut_tpu.evaluate", f"--workdir={tmp_path / name}", "--num_samples=100"),
            *(f"--steps={','.join(STEPS)}", f"--json={tmp_path / name}.json"),
        ]

    log, environment = tmp_path / "log", lab.environment()
    with pods.started(arguments("whole"), environment, log) as process:
        assert pods.ended(process, log) == 0, log.read_text()

    broken, unfinished = arguments("broken"), tmp_path / "broken" / "evaluations" / "unfinished"

    def kept() -> dict[str, int]:
        return {file.stem: file.stat().st_mtime_ns for file in unfinished.glob("*/*.npz")}

    with pods.started(broken, environment, log) as process:
        pods.until(lambda: len(kept()) >= 2, process, log)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    before = kept()
    assert len(before) < len(STEPS)
    with pods.started(broken, environment, log) as process:
        pods.until(lambda: len(kept()) > len(before), process, log)
        # What was done is not done again.
        assert before.items() <= kept().items()
        assert pods.ended(process, log) == 0, log.read_text()
    assert not unfinished.exists() or not any(unfinished.iterdir())
    whole, again = (pods.read_json(tmp_path / f"{name}.json") for name in ("whole", "broken"))
    assert whole == again

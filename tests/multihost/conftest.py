"""What the tests on real processes share: records, compiled programs, and a run never broken."""

import dataclasses
from pathlib import Path

import pytest

from tests.multihost import pods


@dataclasses.dataclass(frozen=True)
class Lab:
    """Folders that tests share."""

    data: Path
    cache: Path
    unbroken: Path

    def environment(self, devices: int = 1) -> dict[str, str]:
        return pods.environment(self.cache, devices)


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """The records, and a run of two processes that nothing happened to."""
    folder = tmp_path_factory.mktemp("lab")
    lab = Lab(folder / "digits", folder / "cache", folder / "unbroken")
    pods.make_records(lab.data)
    log = folder / "unbroken.log"
    arguments = pods.pod_arguments(lab.unbroken, lab.data)
    with pods.started(arguments, lab.environment(), log) as process:
        assert pods.ended(process, log) == 0, log.read_text()
    return lab

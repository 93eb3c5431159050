"""The soak: runs that meet every trouble there is, for as long as is asked, and lose nothing.

  SHORTCUT_TPU_SOAK=20 tests/run.sh -m pods -s tests/multihost/test_soak.py    # for 20 minutes

Each trouble is met at least once. Root and `setpriv` are needed for disks
that fill and for files without rights; clocks are wrong as Python sees them (`wrong_clock`).
"""

import os
from pathlib import Path
import random
import time

import pytest

from tests.multihost import pods
from tests.multihost.soaking import (
    OVERRIDES,
    PATIENCE_SECONDS,
    SAVES,
    STEPS,
    Ground,
    Soaked,
    places,
)

SOAK = "SHORTCUT_TPU_SOAK"

pytestmark = [
    pytest.mark.pods,
    pytest.mark.skipif(SOAK not in os.environ, reason=f"takes minutes; set {SOAK} to how many"),
]
# What a run may meet before it is done.
TROUBLES_A_RUN = 3


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    pods.make_records(tmp_path / "records")
    return Ground(tmp_path, tmp_path / "records")


def unbroken(ground: Ground) -> tuple[dict[str, bytes], dict[int, set[float]]]:
    workdir, log = ground.folder / "unbroken", ground.folder / "log"
    arguments = pods.pod_arguments(workdir, ground.data, *OVERRIDES)
    with pods.started(arguments, pods.environment(ground.folder / "cache"), log) as process:
        assert process.wait(PATIENCE_SECONDS) == 0, log.read_text()
    return pods.state_bytes(workdir), pods.logged(workdir, "train/loss")


def test_soak(ground):
    state, losses = unbroken(ground)
    assert sorted(losses) == list(range(1, STEPS + 1))
    chance = random.Random(os.environ.get("SHORTCUT_TPU_SOAK_SEED", 0))
    until = time.monotonic() + 60 * float(os.environ[SOAK])
    todo: dict[str, list[str]] = {place: [] for place in places()}
    runs = 0
    try:
        while time.monotonic() < until or any(
            not set(troubles) <= set(ground.met) for troubles in places().values()
        ):
            # Each place in turn; each of its troubles once before any comes twice.
            place = list(todo)[runs % len(todo)]
            if len(todo[place]) < TROUBLES_A_RUN:
                todo[place] += chance.sample(places()[place], len(places()[place]))
            troubles = [todo[place].pop(0) for _ in range(TROUBLES_A_RUN)]
            runs += 1
            with Soaked(ground, ground.folder / f"run-{runs}", place, chance) as run:
                todo[place] = run.soak(troubles) + todo[place]
                assert pods.state_bytes(run.workdir) == state, (place, troubles)
                found = dict(run.losses())
                # A step that was made twice is logged twice, with the same value.
                assert all(found[step] == losses[step] for step in found), (place, troubles)
                # What was logged before a save is there as the save is; a full disk takes neither.
                missing = sorted(set(losses) - set(found))
                ground.lost["logged steps"] += len(missing)
                assert not missing or "disk full" in troubles, (place, troubles, missing)
            print(f"{runs} {place}: {', '.join(troubles)}: the same bits", flush=True)
    finally:
        report(ground, runs)


def report(ground: Ground, runs: int) -> None:
    """What was met, and what it cost."""
    print(
        f"\n{runs} runs of {STEPS} steps, a save every {SAVES}; all with the bits of one unbroken"
    )
    for title, counts in (("met", ground.met), ("lost", ground.lost), ("said", ground.said)):
        print(f"{title}:")
        print("\n".join(f"  {count:5} {name}" for name, count in counts.most_common()))

"""How a command tells its supervisor why it ended.

The command says why it ended, which an exit status alone does not, in a file that the supervisor
names in the environment; without one nothing is written. The supervisor names the run.

Usage:
  outcome.report(outcome.PREEMPTED)
"""

import os
from pathlib import Path

FILE = "SHORTCUT_TPU_OUTCOME"
# The same at every start of a run, so that it is not taken for another of itself.
RUN = "SHORTCUT_TPU_RUN"

# Saved because it was asked to end before its work was done: start it again.
PREEMPTED = "preempted"
# A person has to mend something: starting it again would end the same.
REFUSED = "refused"
# Ended while the other hosts were not there: start it again, for it is they who have to come.
WAITING = "waiting"

# What a supervisor ends with, for a cluster that would start it again elsewhere. XPK and the JobSet
# of launch/gke go by them: all but the last are worth another start.
STOPPED_STATUS = 143
GAVE_UP_STATUS = 1
REFUSED_STATUS = 78


def report(word: str) -> None:
    """Leaves a word for the supervisor."""
    if os.environ.get(FILE):
        Path(os.environ[FILE]).write_text(word)


def read(path: Path) -> str:
    """The word that a process left, or nothing."""
    return path.read_text() if path.exists() else ""

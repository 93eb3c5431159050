"""Restarts a command, or a group of processes, whenever it dies.

  python -m launch.supervisor --max_restarts=50 -- -m shortcut_tpu.train --config=... --workdir=...

The arguments after -- are Python's. In a group, if one process dies all are ended and started
again. A command that ends with status 0 is done. One that was asked to end early (see
`data_pipeline.exit_reason`) is started again; one that failed by a mistake of the user is not.
SIGTERM is passed on, and the processes have --grace_seconds to save.

Exit status: 0 done; 143 stopped by SIGTERM and not done, so that a cluster does not take the run
for finished; 78 a person has to mend something, and another start would not help; 1 died too often.
"""

import argparse
from collections.abc import Callable, Sequence
import dataclasses
import enum
import os
from pathlib import Path
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import IO
import uuid

from data_pipeline import exit_reason
from data_pipeline.errors import UserError, exit_on_user_error, report_failure

_POLL_SECONDS = 0.1
# How the lines begin that say more than the last one: a user error's, the watchdog's.
_TELLING = ("error: ", "Timeout (")


@dataclasses.dataclass(frozen=True)
class Member:
    """A process to start.

    Attributes:
      name: for messages, such as "host 3".
      arguments: what follows `python`.
      environment: all of it.
      log: file that standard error is added to; None for this process's own.
      show: whether standard output is this process's own; else it goes into the log.
    """

    name: str
    arguments: Sequence[str]
    environment: dict[str, str]
    log: Path | None = None
    show: bool = True


@dataclasses.dataclass(frozen=True)
class Policy:
    """When to start again.

    Attributes:
      max_restarts: failures in a row, each before `healthy_seconds` have passed, that end it.
      first_delay: seconds before the first restart; each failure in a row doubles it.
      longest_delay: bound on the delay.
      healthy_seconds: a group that lived so long has left its troubles behind.
      longest_wait: seconds for which the other hosts may stay away, however often one that waits
        for them ends; after that each time counts.
      grace_seconds: how long a process may take to end after SIGTERM.
    """

    max_restarts: int = 50
    first_delay: float = 1.0
    longest_delay: float = 60.0
    healthy_seconds: float = 600.0
    longest_wait: float = 6 * 3600.0
    grace_seconds: float = 600.0


class End(enum.Enum):
    """How a group ended."""

    FINISHED = enum.auto()
    PREEMPTED = enum.auto()
    REFUSED = enum.auto()
    WAITED = enum.auto()
    DIED = enum.auto()
    STOPPED = enum.auto()


class Refused(UserError):
    """The command has said that a person has to mend something."""


class Group:
    """Processes that live and die together; leaving the block ends them."""

    def __init__(self, members: Sequence[Member], run: str):
        self._members = members
        self._run = run
        self._processes: list[subprocess.Popen[bytes]] = []
        self._log_starts: list[int] = []
        self._folder = tempfile.TemporaryDirectory(prefix="outcomes-")

    def __enter__(self) -> "Group":
        try:
            for index, member in enumerate(self._members):
                self._start(index, member)
        except BaseException:
            self._end(signal.SIGKILL, 10)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end(signal.SIGKILL, 10)
        self._folder.cleanup()

    def _start(self, index: int, member: Member) -> None:
        log: IO[bytes] | None = None
        self._log_starts.append(0)
        if member.log is not None:
            member.log.parent.mkdir(parents=True, exist_ok=True)
            log = member.log.open("ab")
            self._log_starts[index] = log.tell()
        try:
            self._processes.append(
                subprocess.Popen(
                    [*_die_with_parent(), sys.executable, *member.arguments],
                    env={
                        **member.environment,
                        exit_reason.FILE: str(self._outcome(index)),
                        exit_reason.RUN: self._run,
                    },
                    stdin=subprocess.DEVNULL,
                    stdout=None if member.show else log,
                    stderr=log,
                )
            )
        finally:
            if log is not None:
                log.close()

    def wait(self, asked_to_stop: Callable[[], bool], grace_seconds: float) -> tuple[End, str]:
        """Returns once the group is done or one process has failed: how, and a line on why."""
        while True:
            codes = [process.poll() for process in self._processes]
            failures = [index for index, code in enumerate(codes) if code]
            if failures:
                # One that was killed comes first: the others died of missing it.
                failed = min(failures, key=lambda index: codes[index] != -signal.SIGKILL)
                return self._end_of(failures), self._reason(failed)
            if all(code == 0 for code in codes):
                preempted = exit_reason.PREEMPTED in self._outcomes()
                return (End.PREEMPTED if preempted else End.FINISHED), "asked to end, and saved"
            if asked_to_stop():
                self._end(signal.SIGTERM, grace_seconds)
                return End.STOPPED, "stopped"
            time.sleep(_POLL_SECONDS)

    def _end_of(self, failures: Sequence[int]) -> End:
        outcomes = self._outcomes()
        if exit_reason.REFUSED in outcomes:
            return End.REFUSED
        waited = all(outcomes[index] == exit_reason.WAITING for index in failures)
        return End.WAITED if waited else End.DIED

    def _outcome(self, index: int) -> Path:
        return Path(self._folder.name) / str(index)

    def _outcomes(self) -> list[str]:
        return [exit_reason.read(self._outcome(index)) for index in range(len(self._members))]

    def _reason(self, failed: int) -> str:
        """The line that a person should read, of the member that refused or else of the failed."""
        outcomes = self._outcomes()
        if exit_reason.REFUSED in outcomes:
            failed = outcomes.index(exit_reason.REFUSED)
        member, code = self._members[failed], self._processes[failed].poll()
        how = "still running" if code is None else f"status {code}"
        if code is not None and code < 0:
            how = f"signal {-code}"
        line = f"{member.name} ended with {how}"
        if member.log is None:
            return line
        with member.log.open("rb") as log:
            log.seek(self._log_starts[failed])
            text = log.read().decode(errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
        errors = [line.removeprefix("error: ") for line in lines if line.startswith(_TELLING)]
        said = (errors or lines or ["it printed nothing"])[-1]
        return f"{line}: {said} (log: {member.log})"

    def _end(self, how: signal.Signals, grace_seconds: float) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(how)
        deadline = time.monotonic() + grace_seconds
        for process in self._processes:
            try:
                process.wait(max(deadline - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def supervise(
    members: Callable[[], Sequence[Member]], policy: Policy, run: str | None = None
) -> End:
    """Runs a group until it is done.

    Must be called by the main thread, for it listens to SIGTERM.

    Args:
      members: called at every start, for a start may need a port of its own.
      policy: when to start again.
      run: the run's name for itself, by which it holds its workdir; one of its own by default.

    Returns:
      FINISHED or STOPPED.

    Raises:
      Refused: the command refused to run.
      UserError: it died too often.
    """
    asked: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
    failures, run = 0, run or uuid.uuid4().hex
    waiting_since: float | None = None
    try:
        while True:
            started = time.monotonic()
            with Group(members(), run) as group:
                end, why = group.wait(lambda: bool(asked), policy.grace_seconds)
            if end in (End.FINISHED, End.STOPPED):
                return end
            if end is End.REFUSED:
                raise Refused(why)
            if end is End.WAITED:
                waiting_since = started if waiting_since is None else waiting_since
                failures += time.monotonic() - waiting_since > policy.longest_wait
                why = f"the other hosts were not there: {why}"
            else:
                waiting_since = None
                if end is End.PREEMPTED or time.monotonic() - started > policy.healthy_seconds:
                    failures = 0
                failures += end is End.DIED
            if failures > policy.max_restarts:
                raise UserError(f"gave up after {policy.max_restarts} restarts: {why}")
            delay = min(policy.first_delay * 2 ** max(failures - 1, 0), policy.longest_delay)
            count = f", restart {failures} of {policy.max_restarts}" if failures else ""
            _say(f"{why}; starting again in {delay:g} s{count}")
            resume = time.monotonic() + delay
            while time.monotonic() < resume and not asked:
                time.sleep(_POLL_SECONDS)
            if asked:
                return End.STOPPED
    finally:
        signal.signal(signal.SIGTERM, before)


def _say(line: str) -> None:
    print(f"supervisor: {line}", file=sys.stderr, flush=True)


def _die_with_parent() -> list[str]:
    """What goes before a command, so that a supervisor that is killed leaves no one on the chips.

    It is a command of its own because JAX forbids what `preexec_fn` does, a fork with Python's
    hooks.
    """
    return ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []


@exit_on_user_error
def main(arguments: Sequence[str]) -> None:
    policy = Policy()
    parser = argparse.ArgumentParser(
        usage="%(prog)s [options] -- PYTHON_ARGUMENTS",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--max_restarts", type=int, default=policy.max_restarts)
    parser.add_argument("--first_delay", type=float, default=policy.first_delay)
    parser.add_argument("--grace_seconds", type=float, default=policy.grace_seconds)
    parser.add_argument("--run", help="its name, the same on every machine it may move to")
    parser.add_argument("command", nargs="+")
    values = parser.parse_args(arguments)
    policy = Policy(
        max_restarts=values.max_restarts,
        first_delay=values.first_delay,
        grace_seconds=values.grace_seconds,
    )
    member = Member("the command", values.command, dict(os.environ))
    try:
        if supervise(lambda: [member], policy, values.run) is End.STOPPED:
            sys.exit(exit_reason.STOPPED_STATUS)
    except Refused as error:
        report_failure(error)
        sys.exit(exit_reason.REFUSED_STATUS)


if __name__ == "__main__":
    main(sys.argv[1:])

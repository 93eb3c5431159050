"""What is started again, what is not, and who dies with whom."""

import contextlib
import dataclasses
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import pytest

from data_pipeline.errors import UserError
from launch.supervisor import End, Member, Policy, supervise

ROOT = Path(__file__).parents[2]
QUICK = Policy(max_restarts=3, first_delay=0.01, grace_seconds=10)


def member(code: str, folder: Path, name: str = "host 0") -> Member:
    """A process that runs a few lines; `count` is how often it has been started before."""
    lines = f"""
import os, pathlib, sys, time
runs = pathlib.Path({str(folder / name)!r})
count = len(runs.read_text()) if runs.exists() else 0
runs.write_text("x" * (count + 1))
{code}
"""
    log = folder / f"{name}.log"
    return Member(name, ("-c", lines), dict(os.environ), log, show=False)


def runs(folder: Path, name: str = "host 0") -> int:
    return len((folder / name).read_text())


def report(word: str) -> str:
    return f"open(os.environ['SHORTCUT_TPU_OUTCOME'], 'w').write({word!r})"


def test_a_death_is_followed_by_a_start(tmp_path, capfd):
    one = member("if count < 2: os.kill(os.getpid(), 9)", tmp_path)
    assert supervise(lambda: [one], QUICK) is End.FINISHED
    assert runs(tmp_path) == 3
    assert capfd.readouterr().err.splitlines() == [
        f"supervisor: host 0 ended with signal 9: it printed nothing (log: {one.log}); "
        f"starting again in {delay} s, restart {number} of 3"
        for number, delay in ((1, "0.01"), (2, "0.02"))
    ]


def test_too_many_deaths_in_a_row_end_it_with_the_reason(tmp_path):
    one = member("print('error: no such thing', file=sys.stderr); sys.exit(1)", tmp_path)
    with pytest.raises(UserError, match="gave up after 3 restarts: .* status 1: no such thing"):
        supervise(lambda: [one], QUICK)
    assert runs(tmp_path) == 4


def test_a_refusal_is_not_repeated(tmp_path):
    says = "print('error: wrong', file=sys.stderr); sys.exit(1)"
    one = member(f"{report('refused')}; {says}", tmp_path)
    with pytest.raises(UserError, match="wrong"):
        supervise(lambda: [one], QUICK)
    assert runs(tmp_path) == 1


def test_waiting_for_other_hosts_is_no_failure(tmp_path, capfd):
    aborts = "os.kill(os.getpid(), 6)"
    one = member(f"if count < 8: {report('waiting')}; {aborts}", tmp_path)
    assert supervise(lambda: [one], QUICK) is End.FINISHED
    assert runs(tmp_path) == 9
    assert "supervisor: the other hosts were not there: host 0 ended with signal 6" in (
        capfd.readouterr().err
    )
    # But not for ever: others may have given up.
    other = member(f"{report('waiting')}; {aborts}", tmp_path, "host 1")
    with pytest.raises(UserError, match="gave up after 3 restarts: the other hosts were not there"):
        supervise(lambda: [other], dataclasses.replace(QUICK, longest_wait=0.0))
    assert runs(tmp_path, "host 1") == 4


def test_a_preempted_run_goes_on_however_often(tmp_path):
    one = member(f"if count < 8: {report('preempted')}", tmp_path)
    assert supervise(lambda: [one], QUICK) is End.FINISHED
    assert runs(tmp_path) == 9


def test_one_that_dies_ends_all_and_all_start_again(tmp_path):
    group = [
        member("if count == 0: time.sleep(0.5); sys.exit(3)", tmp_path, "host 0"),
        member("if count == 0: time.sleep(60)", tmp_path, "host 1"),
    ]
    started = time.monotonic()
    assert supervise(lambda: group, QUICK) is End.FINISHED
    assert time.monotonic() - started < 30
    assert (runs(tmp_path, "host 0"), runs(tmp_path, "host 1")) == (2, 2)


@contextlib.contextmanager
def supervisor(*code: str):
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "launch.supervisor",
            "--first_delay=0.01",
            "--max_restarts=1",
            "--",
            *code,
        ],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        with process:
            yield process
    finally:
        process.kill()
        process.wait()


SAVES = """
import os, signal, sys, time
def end(*_):
    print("saved", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
print(os.getpid(), flush=True)
time.sleep(60)
"""


def test_sigterm_is_passed_on_and_the_status_says_unfinished():
    with supervisor("-c", SAVES) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "saved\n"
        assert process.wait(30) == 143


def test_nothing_outlives_a_supervisor_that_is_killed():
    with supervisor("-c", SAVES) as process:
        process.stdout.readline()
        process.kill()
        # Standard output ends when the last process that holds it is gone.
        assert process.stdout.read() == ""


@pytest.mark.parametrize(("word", "status"), [("refused", 78), ("", 1)])
def test_a_cluster_is_told_what_another_start_would_not_mend(word, status):
    with supervisor("-c", f"import os, sys; {report(word)}; sys.exit(1)") as process:
        process.stdout.read()
        assert process.wait(60) == status

"""A run that meets troubles at moments of chance until it is done, and what each of them cost.

Usage:
  with Soaked(ground, folder, "disk", chance) as run:
      run.soak(["host killed", "clock set back"])
"""

from collections import Counter
from collections.abc import Iterator
import contextlib
import dataclasses
import itertools
import os
from pathlib import Path
import random
import re
import shutil
import signal
import subprocess
import time

from etils import epath

from shortcut_tpu.observability import goodput
from tests.launch.fake_bucket import FakeBucket
from tests.multihost import pods

STEPS, SAVES = 200, 20
OVERRIDES = (
    # What is quick to compile: a soak is about all around the step.
    "--config.objective.name=flow_matching",
    f"--config.train.num_steps={STEPS}",
    f"--config.checkpoint.every_steps={SAVES}",
)
# More than a start takes whose programs are compiled already.
_HANGS = "--config.train.hang_seconds=300"
# Root whom a file's rights stop, as they stop every other user.
_DROPPED = "-dac_override,-dac_read_search"
AS_ORDINARY = ["setpriv", f"--bounding-set={_DROPPED}", f"--inh-caps={_DROPPED}"]
_LIVES = 40
PATIENCE_SECONDS = 900
_DISK_BYTES = 48 << 20
# Seconds by which it is wrong.
_WRONG_CLOCKS = ("-3600", "-4e7", "1e4")


@dataclasses.dataclass
class Ground:
    """What all runs of a soak share.

    Attributes:
      folder: where all of them lie.
      data: the records.
      met: how often each trouble was made.
      lost: what was lost by them, by kind.
      said: last lines of what ended by itself, without numbers and paths.
    """

    folder: Path
    data: Path
    met: Counter[str] = dataclasses.field(default_factory=Counter)
    lost: Counter[str] = dataclasses.field(default_factory=Counter)
    said: Counter[str] = dataclasses.field(default_factory=Counter)


def places() -> dict[str, list[str]]:
    """Where a run can lie on this machine, and the troubles that it can meet there."""
    anywhere = ["host killed", "supervisor killed", "host asked to end", "host hangs"]
    anywhere.append("clock set back")
    on_disks = [*anywhere, "checkpoint byte flipped", "record byte flipped"]
    found = {"disk": on_disks, "bucket": [*anywhere, "bucket refuses"]}
    if os.getuid() == 0:
        found["small disk"] = [*on_disks, "disk full"]
    if os.getuid() == 0 and shutil.which("setpriv"):
        found["user"] = [*on_disks, "file without rights"]
    return found


class Soaked:
    """A run in a workdir of its own; leaving the block ends it."""

    def __init__(self, ground: Ground, folder: Path, place: str, chance: random.Random):
        self._ground, self._folder, self._place, self._chance = ground, folder, place, chance
        self._stack = contextlib.ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self._life = contextlib.ExitStack()
        self._log = folder / "log"
        self._clock = folder / "clock"
        folder.mkdir(parents=True)
        self._bucket = FakeBucket(folder) if place == "bucket" else None
        self._mends: list[tuple[str, Path, bytes | int]] = []
        self.workdir = folder / "run"

    def __enter__(self) -> "Soaked":
        self._clock.write_text("0")
        self._data = self._folder / "records"
        shutil.copytree(self._ground.data, self._data)
        if self._place == "small disk":
            self.workdir.mkdir()
            size = f"size={_DISK_BYTES}"
            subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", self.workdir], check=True)
            self._stack.callback(subprocess.run, ["umount", "-l", self.workdir], check=True)
        if self._bucket:
            self._stack.enter_context(self._bucket.serving())
        return self

    def __exit__(self, *_: object) -> None:
        self._life.close()
        self._stack.close()

    # ------------------------------------------------------------------ lives
    def soak(self, troubles: list[str]) -> list[str]:
        """Makes each trouble once, in this order; returns those that the run's end left over."""
        waiting = list(troubles)
        for _ in range(_LIVES):
            if not self._alive():
                self._mend()
                self._start()
            if waiting and self._wait():
                trouble = waiting.pop(0)
                self._ground.met[trouble] += 1
                getattr(self, "_" + trouble.replace(" ", "_"))()
            elif self._ended() == 0:
                self._account()
                return waiting
            self._note_end()
        raise AssertionError(f"{_LIVES} starts, and not done:\n{self._log.read_text()[-20000:]}")

    def _start(self) -> None:
        workdir = "gs://bucket/run" if self._bucket else str(self.workdir)
        arguments = pods.train_arguments(Path("RUN"), self._data, *OVERRIDES, _HANGS)
        arguments = [argument.replace("RUN", workdir) for argument in arguments]
        environment = pods.environment(self._ground.folder / "cache")
        environment |= {"HOME": str(self._folder), "TMPDIR": str(self._folder)}
        if self._bucket:
            environment |= self._bucket.environment()
        # The clock's module stands before the command's.
        arguments[1:1] = ["tests.multihost.wrong_clock", str(self._clock)]
        command = ["-m", "tests.multihost.train_pod", "2", str(self._folder / "logs"), *arguments]
        before = AS_ORDINARY if self._place == "user" else []
        started = pods.started(command, environment, self._log, before)
        self._process = self._life.enter_context(started)

    def _alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _stop(self) -> None:
        """Kills the supervisor, and with it all hosts."""
        self._life.close()
        self._life = contextlib.ExitStack()

    def _wait(self) -> bool:
        """Lets the run go on for some time, from now or from its next steps; whether it lives."""
        seen, of_steps = self._log.stat().st_size, self._chance.random() < 0.6
        until = time.monotonic() + self._chance.uniform(0, 10 if of_steps else 40)
        while time.monotonic() < until and self._alive():
            if of_steps and b"\nstep " not in self._log.read_bytes()[seen:]:
                until = max(until, time.monotonic() + self._chance.uniform(0, 5))
            time.sleep(0.05)
        return self._alive()

    def _ended(self) -> int:
        """The status that it ends with, however often its supervisor starts it again."""
        assert self._process is not None
        return self._process.wait(PATIENCE_SECONDS)

    def _note_end(self) -> None:
        """Keeps the last line of a run that ended by itself."""
        if self._process is not None and self._process.poll() not in (None, 0, -signal.SIGKILL):
            self._say(self._log.read_text().strip().splitlines()[-1])
            self._stop()

    def _say(self, line: str) -> None:
        plain = re.sub(r"/\S*/|0x[0-9a-f]+|\d+", "", line)
        self._ground.said[f"{self._place}: {plain[:200]}"] += 1

    def _hosts(self) -> list[int]:
        assert self._process is not None
        with contextlib.suppress(FileNotFoundError):
            return pods.children(self._process.pid)
        return []

    def _signal_one(self, how: signal.Signals) -> None:
        if hosts := self._hosts():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._chance.choice(hosts), how)

    def _newest(self) -> Path | None:
        steps = pods.checkpoint_steps(self.workdir)
        # With another before it, so that there is one to go on from.
        return self.workdir / "checkpoints" / str(steps[-1]) if len(steps) > 1 else None

    def _mend(self) -> None:
        for kind, path, before in self._mends:
            if kind == "rights":
                path.chmod(before)
            else:
                path.write_bytes(before)
        self._mends = []

    # ------------------------------------------------------------------ troubles
    def _host_killed(self) -> None:
        self._signal_one(signal.SIGKILL)

    def _supervisor_killed(self) -> None:
        self._stop()

    def _host_asked_to_end(self) -> None:
        self._signal_one(signal.SIGTERM)

    def _host_hangs(self) -> None:
        self._signal_one(signal.SIGSTOP)

    def _clock_set_back(self) -> None:
        """While it runs; and a later start may find it forward again."""
        self._clock.write_text(self._chance.choice(_WRONG_CLOCKS))

    def _disk_full(self) -> None:
        filler = self.workdir / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))
        with contextlib.suppress(OSError), filler.open("ab", buffering=0) as file:
            while True:
                file.write(b"\0")
        time.sleep(self._chance.uniform(1, 20))
        filler.unlink()

    def _bucket_refuses(self) -> None:
        assert self._bucket
        status = self._chance.choice([403, 429, 500, 503])
        self._bucket.fails = lambda method, path: status
        time.sleep(self._chance.uniform(1, 20))
        self._bucket.fails = lambda method, path: None

    def _checkpoint_byte_flipped(self) -> None:
        self._stop()
        if newest := self._newest():
            self._flip([path for path in newest.rglob("*") if path.is_file()])

    def _record_byte_flipped(self) -> None:
        """Whoever reads it refuses; then its first content comes back, as from a copy."""
        self._stop()
        shards = list(self._data.glob("*.array_record"))
        contents = {path: path.read_bytes() for path in shards}
        victim = self._flip(shards)
        self._mends.append(("bytes", victim, contents[victim]))
        self._start_before_mending()

    def _file_without_rights(self) -> None:
        self._stop()
        files = [path for path in self.workdir.rglob("*") if path.is_file()]
        victim = self._chance.choice([*files, self._data / "manifest.json"])
        self._mends.append(("rights", victim, victim.stat().st_mode))
        victim.chmod(0)
        self._start_before_mending()

    def _start_before_mending(self) -> None:
        """A start that meets it; it ends by itself, or never looks there."""
        self._start()
        self._ended()

    def _flip(self, files: list[Path]) -> Path:
        victim = self._chance.choice([path for path in sorted(files) if path.stat().st_size])
        content = bytearray(victim.read_bytes())
        content[self._chance.randrange(len(content))] ^= 1 << self._chance.randrange(8)
        victim.write_bytes(content)
        return victim

    # ------------------------------------------------------------------ the account
    def _account(self) -> None:
        """Adds what the run lost; downloads it, if it is in a bucket."""
        if self._bucket:
            self._bucket.download("gs://bucket/run", self.workdir)
        starts = goodput.recorded(epath.Path(self.workdir))
        lost = self._ground.lost
        for before, after in itertools.pairwise(starts):
            lost["steps made again"] += max(before.step - after.first_step, 0)
        text = self._log.read_text()
        lost["saves that failed"] += text.count("FAILED, training goes on")
        lost["checkpoints set aside"] += len(list(self.workdir.glob("damaged/*")))
        lost["starts"] += len(starts)
        for line in re.findall(r"^(\w[\w.]*(?:Error|Exception)\b.*)", text, re.MULTILINE):
            self._say(line)

    def losses(self) -> Iterator[tuple[int, set[float]]]:
        """What TensorBoard has of the loss, by step."""
        yield from sorted(pods.logged(self.workdir, "train/loss").items())

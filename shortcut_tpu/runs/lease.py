"""Claims a folder where locks do not work, such as in a bucket, by renewing a file.

Whoever finds the file of another watches it. If it changes, its owner is alive, and the folder is
taken; if it rests, its owner has died. No clocks are compared.

Usage:
  with Lease(workdir, owner="a run's name for itself"):
    ...
"""

from collections.abc import Callable
import contextlib
import json
import os
import socket
import sys
import threading
import time

from etils import epath

from data_pipeline import exit_reason
from data_pipeline.errors import UserError

_FILE = "lease.json"


class Lease:
    """Holds a folder from the beginning of a with block to its end."""

    def __init__(
        self,
        folder: epath.Path,
        owner: str,
        *,
        beat_seconds: float = 20.0,
        settle_seconds: float = 2.0,
        on_lost: Callable[[str], None] | None = None,
    ):
        """Touches nothing yet.

        Args:
          folder: what to hold.
          owner: of a run; one that is started again under the same name goes on at once.
          beat_seconds: between writes; one that is watched has to rest for 2.5 times this.
          settle_seconds: how long another that started at the same moment may take to write.
          on_lost: called with a line when another has taken the folder; ends the process if None.
        """
        self._folder = folder
        self._file = folder / _FILE
        self._owner = owner
        self._beat_seconds = beat_seconds
        self._settle_seconds = settle_seconds
        self._on_lost = on_lost or _end
        self._beats = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def __enter__(self) -> "Lease":
        """Claims the folder.

        Raises:
          UserError: another run holds it.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        found = self._read()
        if found and found.get("owner") != self._owner:
            self._watch(found)
        self._write()
        time.sleep(self._settle_seconds)
        if self._taken():
            raise UserError(self._refusal(self._read()))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        # What cannot be removed rests, and so holds nobody.
        with contextlib.suppress(Exception):
            if not self._taken():
                self._file.unlink(missing_ok=True)

    def _watch(self, found: dict[str, object]) -> None:
        patience = 2.5 * self._beat_seconds
        print(
            f"{self._folder}: was held by {_holder(found)}; looking for {patience:.0f} s whether "
            "it lives",
            file=sys.stderr,
            flush=True,
        )
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            time.sleep(min(self._beat_seconds / 4, max(deadline - time.monotonic(), 0)))
            now = self._read()
            if now and now != found:
                raise UserError(self._refusal(now))

    def _keep(self) -> None:
        while not self._done.wait(self._beat_seconds):
            # A bucket that does not answer for a while is no reason to end a run; TensorFlow, which
            # asks it, has errors of its own.
            with contextlib.suppress(Exception):
                if self._taken():
                    self._on_lost(self._refusal(self._read()))
                    return
                self._write()

    def _taken(self) -> bool:
        found = self._read()
        return bool(found) and found.get("owner") != self._owner

    def _refusal(self, found: dict[str, object]) -> str:
        return (
            f"{self._folder}: another run is using this workdir ({_holder(found)}); stop it, or "
            "give this one another --workdir"
        )

    def _read(self) -> dict[str, object]:
        """What the file says; nothing where there is none or only half of one."""
        try:
            content = json.loads(self._file.read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def _write(self) -> None:
        self._beats += 1
        content = {
            "owner": self._owner,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "beat": self._beats,
        }
        self._file.write_text(json.dumps(content) + "\n")


def _holder(found: dict[str, object]) -> str:
    return f"process {found.get('process')} on {found.get('host')}"


def _end(line: str) -> None:
    """Two writers would spoil what both have."""
    print(f"error: {line}", file=sys.stderr, flush=True)
    exit_reason.report(exit_reason.REFUSED)
    os._exit(1)

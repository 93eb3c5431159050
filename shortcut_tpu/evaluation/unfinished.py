"""Saves the sums of an evaluation under way, so that it continues after a kill.

Sums lie in WORKDIR/evaluations/unfinished/KEY, a file for each number of sampling steps; KEY tells
evaluations apart by all that their sums depend on. They are deleted when the command is through.

Usage:
  unfinished = Unfinished(workdir, {"step": 800_000, "protocol": "adm", "seed": 0, ...})
  sums = unfinished.load("128") or Sums.empty(...)
  unfinished.save("128", sums)
"""

from collections.abc import Mapping
import hashlib
import json
import time
from typing import Any

from etils import epath

from data_pipeline.atomic_files import failures
from data_pipeline.system_errors import raise_if_system
from shortcut_tpu.cli.console import say
from shortcut_tpu.evaluation.sums import Sums


class Unfinished:
    """The sums of one evaluation, on the first host; others have nothing to do with it."""

    def __init__(self, workdir: epath.PathLike, key: Mapping[str, Any], every_seconds: float = 60):
        """Nothing is read or written yet.

        Args:
          workdir: of the run.
          key: what the sums depend on, as JSON has it.
          every_seconds: that `due` lets pass between saves.
        """
        content = json.dumps(dict(key), sort_keys=True)
        self.key = hashlib.sha256(content.encode()).hexdigest()
        self._content = content
        self._folder = epath.Path(workdir) / "evaluations" / "unfinished" / self.key[:16]
        self._every_seconds = every_seconds
        self._saved = time.monotonic()

    def due(self) -> bool:
        """Whether it is time to save again."""
        return time.monotonic() - self._saved >= self._every_seconds

    def load(self, name: str) -> Sums | None:
        """The sums of this name, if there are any and they are whole.

        Raises:
          UserError: the system cannot read them.
        """
        path = self._folder / f"{name}.npz"
        if not path.exists():
            return None
        try:
            return Sums.from_bytes(path.read_bytes())
        # A damaged archive can end in almost any exception, and nothing is lost but time.
        except Exception as error:
            raise_if_system(path, error)
            say(f"{path}: is damaged ({error}); these samples are made again")
            return None

    def save(self, name: str, sums: Sums) -> None:
        """Keeps the sums; a full disk is reported, and the evaluation goes on."""
        self._saved = time.monotonic()
        temporary = self._folder / f"{name}.tmp"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / "key.json").write_text(self._content)
            temporary.write_bytes(sums.to_bytes())
            temporary.replace(self._folder / f"{name}.npz")
        except failures() as error:
            say(f"{self._folder}: cannot be written, a kill would lose work: {error}")

    def remove(self) -> None:
        """Deletes what was kept."""
        if self._folder.exists():
            self._folder.rmtree()

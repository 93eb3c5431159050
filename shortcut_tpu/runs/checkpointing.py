"""Asynchronous Orbax checkpoints that restore on any mesh and number of hosts.

With each go the config of its run and checksums of its files. A damaged one is reported and the
one before taken. A save that fails is loud and costs nothing but itself.

Usage:
  checkpoints = Checkpoints(workdir / "checkpoints", keep=3, config=config)
  step = checkpoints.newest()                        # verified; None for a fresh run
  state = checkpoints.restore(abstract_state, step)
  checkpoints.save(step, state)                      # returns when the state is copied
  checkpoints.close()
"""

import dataclasses
import importlib.util
import os
import sys
import threading
from typing import Any

from absl import logging
from etils import epath
import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
import numpy as np
import orbax.checkpoint as ocp

from data_pipeline.atomic_files import in_bucket
from data_pipeline.errors import UserError
from shortcut_tpu.pod import distributed
from shortcut_tpu.runs import checksums

_NONE, _ALL_DAMAGED = -1, -2


class Checkpoints:
    """The folder `WORKDIR/checkpoints`, one subfolder a step.

    Attributes:
      failures: saves that have failed since the run started; the same on every process.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        keep: int | None = None,
        config: ConfigDict | None = None,
    ):
        """Opens the folder.

        Args:
          directory: may be on Google Cloud Storage.
          keep: how many to keep; None opens the folder to read, and leaves damaged ones in place.
          config: goes into every checkpoint.

        Raises:
          UserError: the folder is in a bucket, and the package for that is missing.
        """
        self.failures = 0
        folder, remote = epath.Path(directory), in_bucket(directory)
        if remote and importlib.util.find_spec("google.cloud.storage") is None:
            raise UserError(
                f"{folder}: Orbax needs google-cloud-storage for a bucket: pip install"
                " 'shortcut_tpu[cloud]'"
            )
        # Orbax wants an absolute path; `resolve` would make gs:// a folder of this machine.
        self._folder = folder if remote else folder.resolve()
        self._keep = keep
        self._config = config.to_dict() if config is not None else {}
        self._options = ocp.CheckpointManagerOptions(
            read_only=keep is None,
            # What reading implies; Orbax warns of what it has to correct.
            create=keep is not None,
            save_interval_steps=1 if keep is not None else 0,
            # In a bucket it would delete a checkpoint that has lost a file, too.
            cleanup_tmp_directories=keep is not None and not remote,
        )
        self._manager = self._open()
        self._finishing: threading.Thread | None = None
        self._error: BaseException | None = None
        self._saved: int | None = None

    def _open(self, handlers: dict[str, Any] | None = None) -> ocp.CheckpointManager:
        verbosity = logging.get_verbosity()
        if self._keep is None:
            # It warns that a reader can only read.
            logging.set_verbosity(logging.ERROR)
        try:
            return ocp.CheckpointManager(
                self._folder, options=self._options, item_handlers=handlers
            )
        finally:
            logging.set_verbosity(verbosity)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------ reading
    def newest(self) -> int | None:
        """The step of the newest whole checkpoint, or None; the same on every process.

        Damaged ones that are newer are reported in a line each and, by a run that writes here,
        set aside.

        Raises:
          UserError: there are checkpoints and none is whole. Nothing was moved.
        """
        # The others wait until the first has set aside what they are not to see.
        found = distributed.from_first(self._find_newest())
        if found == _ALL_DAMAGED:
            raise UserError(
                f"{self._folder}: every checkpoint is damaged; nothing was moved or deleted"
            )
        self._manager.reload()
        return None if found == _NONE else found

    def _find_newest(self) -> int:
        first = jax.process_index() == 0
        steps = distributed.from_first(checksums.steps(self._folder))
        problems: dict[int, str] = {}
        newest = _NONE
        for step in reversed(steps):
            problem = self._find_problem(step)
            if problem is None:
                newest = step
                break
            problems[step] = problem
        # One save that never finished is no checkpoint; several are, of which something is lost.
        if newest == _NONE and (len(steps) > 1 or set(problems.values()) - {checksums.UNFINISHED}):
            for step, problem in problems.items() if first else ():
                _warn(f"checkpoint {step} is damaged: {problem}")
            return _ALL_DAMAGED
        for step, problem in problems.items() if first else ():
            place = self._folder / str(step)
            if self._keep is not None:
                place = checksums.set_aside(self._folder, step)
            _warn(f"checkpoint {step} is not whole: {problem}; left aside at {place}")
        return newest

    def _find_problem(self, step: int) -> str | None:
        """What any host has found in its share of the files; the same on every process."""
        host, hosts = jax.process_index(), jax.process_count()
        found = checksums.find_problem(self._folder, step, host, hosts)
        return next(filter(None, distributed.from_all(found or "")), None)

    def config(self, step: int) -> dict[str, Any]:
        """The config of the run that wrote a checkpoint."""
        return checksums.read_config(self._folder, step)

    def restore(self, abstract_state: Any, step: int | None = None) -> Any:
        """The state of a step, each leaf with the dtype and sharding of `abstract_state`'s.

        Args:
          abstract_state: a tree of ShapeDtypeStructs with shardings.
          step: which; the newest if None.

        Raises:
          UserError: there is no such checkpoint.
        """
        step = self._require(step)
        args = ocp.args.StandardRestore(_held(abstract_state))
        held = self._manager.restore(step, args=ocp.args.Composite(state=args))["state"]
        whole = dataclasses.is_dataclass(abstract_state)
        return dataclasses.replace(abstract_state, **held) if whole else held

    def restore_part(self, abstract_part: Any, step: int | None = None) -> tuple[int, Any]:
        """Reads only some subtrees of the state, such as one average of the weights.

        Args:
          abstract_part: a tree of dicts down to ShapeDtypeStructs with shardings, for example
            {"emas": {"evaluation": ...}}.
          step: which; the newest if None.

        Returns:
          The step and the part.

        Raises:
          UserError: there is no such checkpoint.
        """
        step = self._require(step)
        restore_args = jax.tree.map(
            lambda leaf: ocp.ArrayRestoreArgs(sharding=leaf.sharding, dtype=leaf.dtype),
            abstract_part,
        )
        args = ocp.args.PyTreeRestore(
            item=abstract_part, restore_args=restore_args, partial_restore=True
        )
        with self._open({"state": ocp.PyTreeCheckpointHandler()}) as manager:
            part = manager.restore(step, args=ocp.args.Composite(state=args))["state"]
        return step, part

    def _require(self, step: int | None) -> int:
        if step is None:
            step = self.newest()
            if step is None:
                raise UserError(f"{self._folder}: no checkpoint there")
            return step
        steps = checksums.steps(self._folder)
        if step not in steps:
            held = f", only of {', '.join(map(str, steps))}" if steps else ""
            raise UserError(f"{self._folder}: no checkpoint of step {step}{held}")
        return step

    # ------------------------------------------------------------------ writing
    def save(self, step: int, state: Any) -> None:
        """Starts a save and returns once the arrays are copied off the devices.

        A failure of this save or of the one before is counted and printed, and not raised: training
        is worth more than one checkpoint.
        """
        self.wait()
        if step == self._saved:
            return
        if jax.process_index() == 0:
            checksums.forget_parts(self._folder, step, jax.process_count())
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(_held(state)),
                    config=ocp.args.JsonSave(self._config),
                ),
                force=True,
            )
        except Exception as error:
            self._error = error
        self._finishing = threading.Thread(target=self._finish, args=(step,), name="checksums")
        self._finishing.start()
        self._saved = step

    def wait(self) -> None:
        """Returns once the save that was started is finished, or has failed and been counted."""
        if self._finishing is None:
            return
        self._finishing.join()
        self._finishing = None
        failed = np.array(self._error is not None)
        # A save counts where every process did its part.
        if np.any(multihost_utils.process_allgather(failed)):
            self.failures += 1
            reason = "on another process" if self._error is None else _first_line(self._error)
            _warn(f"the checkpoint of step {self._saved} FAILED, training goes on: {reason}")
            if jax.process_index() == 0 and self._saved is not None:
                checksums.remove_leftovers(self._folder, self._saved)
            self._saved = None
            self._error = None
            # The one that failed may hold on to its error and fail again.
            self._manager = self._open()

    def close(self) -> None:
        """Waits for the save that was started, and ends the threads."""
        self.wait()
        self._manager.close()

    def _finish(self, step: int) -> None:
        """Writes the checksums once Orbax has finished, then lets go of the oldest checkpoints."""
        try:
            self._manager.wait_until_finished()
            if self._error is None:
                checksums.write(self._folder, step, jax.process_index(), jax.process_count())
            if self._error is None and jax.process_index() == 0:
                whole = checksums.finished(self._folder)
                for old in whole[: -self._keep] if self._keep else []:
                    if old != step:
                        checksums.remove(self._folder, old)
        except Exception as error:
            self._error = self._error or error


def still_waiting() -> bool:
    """Whether Orbax waits for parts of a save that has failed, which can take it ten minutes."""
    return any(
        not thread.daemon and type(thread).__module__.startswith("orbax.")
        for thread in threading.enumerate()
    )


def _held(state: Any) -> Any:
    """The fields of a state that hold arrays; a checkpoint of before a field was has none of it."""
    if not dataclasses.is_dataclass(state):
        return state
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: value for name, value in fields.items() if jax.tree.leaves(value)}


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _warn(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr, flush=True)

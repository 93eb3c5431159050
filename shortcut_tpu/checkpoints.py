"""Checkpoints of a run: Orbax, written beside training, restorable on any mesh and host count.

Usage:
  with Checkpoints(workdir / "checkpoints", keep=3) as checkpoints:
    state = checkpoints.restore(abstract_state)        # the newest, or None
    checkpoints.save(step, state)                      # returns when the state is copied
"""

from pathlib import Path
from typing import Any

from etils import epath
import jax
import orbax.checkpoint as ocp

from data_pipeline.errors import UserError


class Checkpoints:
    """The folder `WORKDIR/checkpoints`, one subfolder a step."""

    def __init__(self, directory: str | Path, keep: int | None = None):
        self._manager = ocp.CheckpointManager(
            epath.Path(directory).resolve(),
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def latest_step(self) -> int | None:
        """The newest finished checkpoint's step."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any) -> None:
        """Starts a save and returns once the arrays are copied off the devices."""
        self._manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state)))

    def restore(self, abstract_state: Any, step: int | None = None) -> Any:
        """The state of a step, each leaf with the dtype and sharding of `abstract_state`'s.

        Args:
          abstract_state: a tree of ShapeDtypeStructs with shardings.
          step: which; the newest if None.

        Raises:
          UserError: there is no such checkpoint.
        """
        step = self._require(step)
        return self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state))
        )["state"]

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
        with ocp.CheckpointManager(
            self._manager.directory, item_handlers={"state": ocp.PyTreeCheckpointHandler()}
        ) as manager:
            part = manager.restore(step, args=ocp.args.Composite(state=args))["state"]
        return step, part

    def close(self) -> None:
        """Waits for every started save and ends its threads."""
        self._manager.close()

    def wait(self) -> None:
        """Returns once every started save is finished."""
        self._manager.wait_until_finished()

    def _require(self, step: int | None) -> int:
        steps = self._manager.all_steps()
        if not steps:
            raise UserError(f"{self._manager.directory}: no checkpoint there")
        if step is None:
            return max(steps)
        if step not in steps:
            raise UserError(
                f"{self._manager.directory}: no checkpoint of step {step}, only of "
                f"{', '.join(map(str, sorted(steps)))}"
            )
        return step

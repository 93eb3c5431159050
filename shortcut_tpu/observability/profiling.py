"""Profiles a range of steps into WORKDIR/profile, for XProf and TensorBoard.

Usage:
  with Profiler(workdir / "profile", StepRange.parse("100:105")) as profiler:
    for step in ...:
      profiler.reached(step, metrics)                  # before the step; the last one's outputs
      with step_marker(step):
        metrics = ...
"""

import dataclasses
from pathlib import Path
import re
import sys
import tempfile
from typing import Any

from etils import epath
import jax

from data_pipeline.atomic_files import failures
from data_pipeline.errors import UserError


@dataclasses.dataclass(frozen=True)
class StepRange:
    """Steps from `start` up to, and not including, `stop`."""

    start: int
    stop: int

    @classmethod
    def parse(cls, text: str) -> "StepRange":
        """Reads START:STOP.

        Raises:
          UserError: it is something else, or empty.
        """
        match = re.fullmatch(r"(\d+):(\d+)", text)
        found = cls(int(match[1]), int(match[2])) if match else None
        if found is None or not 1 <= found.start < found.stop:
            raise UserError(
                f"--profile_steps={text}: not START:STOP like 100:105, which is steps 100 to 104; "
                "steps count from 1"
            )
        return found


def step_marker(step: int) -> jax.profiler.StepTraceAnnotation:
    """Marks the block as a step of training in a profile, if one is being made."""
    return jax.profiler.StepTraceAnnotation("train", step_num=step)


class Profiler:
    """Profiles the steps of a range on this process; where there is none, nothing."""

    def __init__(self, folder: epath.Path, steps: StepRange | None):
        """Does nothing yet.

        Args:
          folder: gets plugins/profile/steps_START_STOP/host_N.xplane.pb, N this process.
          steps: which, if any.
        """
        self._steps = steps
        self._folder = folder
        # The profiler's own writer knows no buckets.
        self._local: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *_: object) -> None:
        if self._local is not None:
            self._stop(None)

    def reached(self, step: int, before: Any) -> None:
        """Begins or ends the profile where that is due, once the devices have caught up.

        Args:
          step: the next.
          before: outputs of the last one.
        """
        if self._steps is None:
            return
        if self._local is None and self._steps.start <= step < self._steps.stop:
            jax.block_until_ready(before)
            self._local = tempfile.TemporaryDirectory(prefix="profile-")
            options = jax.profiler.ProfileOptions()
            # Following every call of Python would slow down what is to be measured.
            options.python_tracer_level = 0
            jax.profiler.start_trace(self._local.name, profiler_options=options)
        elif self._local is not None and step == self._steps.stop:
            self._stop(before)

    def _stop(self, before: Any) -> None:
        assert self._local is not None and self._steps is not None
        jax.block_until_ready(before)
        jax.profiler.stop_trace()
        name = f"steps_{self._steps.start}_{self._steps.stop}"
        target = self._folder / "plugins" / "profile" / name
        try:
            [trace] = Path(self._local.name).glob("plugins/profile/*/*.xplane.pb")
            target.mkdir(parents=True, exist_ok=True)
            # XProf tells hosts apart by their files' names.
            path = target / f"host_{jax.process_index()}.xplane.pb"
            path.write_bytes(trace.read_bytes())
        # No profile is worth the run.
        except failures(ValueError) as error:
            reason = str(error).partition("\n")[0]
            print(f"warning: {target}: no profile: {reason}", file=sys.stderr, flush=True)
        self._local.cleanup()
        self._local, self._steps = None, None

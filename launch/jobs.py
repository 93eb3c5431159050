"""The jobs that launchers can run on a pod: training and the other commands for all hosts.

Usage:
  JOBS["evaluate"].arguments(workdir="gs://BUCKET/RUN", more=["--steps=1,4"])
  # ["-m", "shortcut_tpu.evaluate", "--workdir=gs://BUCKET/RUN", "--steps=1,4"]
"""

from collections.abc import Sequence
import dataclasses
from pathlib import Path
import subprocess
import sys
from typing import IO

from absl import flags

from data_pipeline.command_line import refuse_twice
from data_pipeline.errors import UserError
from shortcut_tpu.cli import command
from shortcut_tpu.evaluation.inputs import require_named
from shortcut_tpu.pod.topologies import Topology

ROOT = Path(__file__).parents[1]
TRAIN = "shortcut_tpu.train"


@dataclasses.dataclass(frozen=True)
class Job:
    """A command.

    Attributes:
      module: what `python -m` runs.
      takes_config: whether it is told --config and its overrides.
      takes_workdir: whether it is told --workdir.
    """

    module: str
    takes_config: bool = False
    takes_workdir: bool = True

    def arguments(
        self, *, workdir: str, config: Sequence[str] = (), more: Sequence[str] = ()
    ) -> list[str]:
        """What follows `python`.

        Raises:
          UserError: a flag is given twice, which the command would refuse once the pod is there.
        """
        found = [
            *(config if self.takes_config else ()),
            *([f"--workdir={workdir}"] if self.takes_workdir else ()),
            *more,
        ]
        given: dict[str, str] = {}
        for argument in found:
            name, _, value = argument.lstrip("-").partition("=")
            if argument.startswith("-"):
                refuse_twice(given, name, value)
        return ["-m", self.module, *found]


JOBS = {
    "train": Job(TRAIN, takes_config=True),
    "evaluate": Job("shortcut_tpu.evaluate"),
    "generate_pairs": Job("shortcut_tpu.generate_pairs"),
    "measure": Job("shortcut_tpu.measure", takes_config=True, takes_workdir=False),
    "encode_latents": Job("data_pipeline.encode_latents", takes_workdir=False),
}


def define_job() -> None:
    """Defines --job, and --config with its overrides."""
    command.define_config()
    flags.DEFINE_enum(
        "job", "train", list(JOBS), "What to run; arguments of the job's own go after --."
    )


def slice_topology(accelerator: str) -> Topology:
    """The topology of --type.

    Raises:
      UserError: it is none, or several slices.
    """
    topology = Topology.parse(accelerator)
    if topology.slices > 1:
        raise UserError(f"--type={accelerator}: the type of one slice; --slices says how many")
    return topology


def split_arguments() -> list[str]:
    """Takes what comes after -- off the command line, and returns it."""
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    after = sys.argv[end + 1 :]
    sys.argv = sys.argv[:end]
    return after


def chosen() -> tuple[Job, list[str]]:
    """The job of the flags, and its --config with overrides, as a checkout on a pod names it.

    Raises:
      UserError: the job needs a config and has none, or one outside this checkout, or one whose
        evaluations lack files.
    """
    job = JOBS[flags.FLAGS.job]
    if not job.takes_config:
        return job, []
    parsed = command.config()
    if job.module == TRAIN and parsed.evaluation.every_steps:
        require_named(parsed)
    config = command.config_path().resolve()
    if not config.is_relative_to(ROOT):
        raise UserError(f"--config={config}: not in {ROOT}, so that the pod would not have it")
    overrides = [argument for argument in sys.argv[1:] if argument.startswith("--config.")]
    return job, [f"--config={config.relative_to(ROOT)}", *overrides]


def preflight(job: Job, config: Sequence[str], topology: Topology, slices: int) -> list[str]:
    """The command that compiles a job for its pod here; of training it walks the whole run."""
    pod = f"{slices}x {topology.name}" if slices > 1 else topology.name
    whole = ["--whole"] if job.module == TRAIN else []
    return [
        *(sys.executable, "-m", "shortcut_tpu.preflight"),
        *(*config, f"--topology={pod}", *whole),
    ]


def do(line: Sequence[str], output: IO[str] | None = None) -> None:
    """Runs a command from the root of this checkout.

    Args:
      line: program and arguments.
      output: where its output goes; to this process's by default.

    Raises:
      UserError: it failed; the message is its own.
    """
    result = subprocess.run(
        line,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if result.returncode:
        lines = [one for one in result.stderr.splitlines() if one.startswith("error: ")]
        said = result.stderr.splitlines() or ["it failed"]
        raise UserError((lines or [f"{line[0]}: {said[-1]}"])[-1].removeprefix("error: "))

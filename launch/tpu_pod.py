"""Trains a config on a TPU pod and keeps it training; for machines with gcloud.

  launch/tpu_pod.sh --config=imagenet256_xl --name=NAME --zone=us-central1-a \\
      --type=v5litepod-256 --workdir=gs://BUCKET/RUN \\
      --config.evaluation.features=inception:gs://BUCKET/inception.pth \\
      --config.evaluation.reference=gs://BUCKET/VIRTUAL_imagenet256_labeled.npz
  launch/tpu_pod.sh --job=evaluate ... --workdir=gs://BUCKET/RUN -- --steps=1,4,128
  launch/tpu_pod.sh --name=NAME --zone=us-central1-a --status     # or --logs, --stop, --delete

Compiles the step for the pod here first. Then creates the pod or takes the one of that name, ships
the code as committed through the workdir, and starts the run on every worker under the supervisor.
Follows the log; a pod that is preempted is deleted and created anew, and goes on from the newest
checkpoint. Ctrl-C leaves the pod running. Overrides --config.KEY=VALUE, and arguments after --,
reach the command that runs. --dry_run prints the commands and runs none.
"""

from collections.abc import Sequence
import dataclasses
from pathlib import Path
import re
import shlex
import subprocess
import sys
import tempfile
import time

from absl import flags

from data_pipeline.errors import UserError
from launch import jobs, worker_script
from launch.gcloud import Gcloud, call, explain
from launch.jobs import JOBS, ROOT
from shortcut_tpu import command
from shortcut_tpu.topologies import Topology

_VERSIONS = {
    "v4": "tpu-ubuntu2204-base",
    "v5e": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}
_GONE = ("PREEMPTED", "TERMINATED", "STOPPED")
_QUEUE_GONE = ("SUSPENDING", "SUSPENDED", "FAILED")
_UNREACHABLE = "unreachable"
_MAX_LOST = 30
_NAME = r"[a-z]([a-z0-9-]{0,48}[a-z0-9])?"


def define_flags() -> None:
    jobs.define_job()
    flags.DEFINE_string("name", None, "Name of the pod; the one that exists is used again.")
    flags.DEFINE_string("zone", None, "Zone, such as us-central1-a.")
    flags.DEFINE_string("project", None, "Project; gcloud's own by default.")
    flags.DEFINE_string("type", None, "Accelerator, such as v5litepod-256, v6e-256, v5p-128.")
    flags.DEFINE_string(
        "workdir", None, "Folder of the run that this machine and all workers see: gs://BUCKET/RUN."
    )
    flags.DEFINE_boolean("spot", False, "Cheaper, and preempted without asking.")
    flags.DEFINE_boolean("queued", False, "Wait in the queue until there is a pod.")
    flags.DEFINE_integer("slices", 1, "Slices of that type; more than 1 need --queued.", 1)
    flags.DEFINE_boolean("preflight", True, "Compile the step for the pod first.")
    flags.DEFINE_float("poll_seconds", 20.0, "Between looks at a pod that is not ready.", 0.01)
    flags.DEFINE_boolean("dry_run", False, "Print the commands and run none.")
    flags.DEFINE_boolean("status", False, "Print the states of the pod and of the run.")
    flags.DEFINE_boolean("logs", False, "Follow the log of the first worker.")
    flags.DEFINE_boolean("stop", False, "Save and end the run; keep the pod.")
    flags.DEFINE_boolean("delete", False, "Delete the pod; the workdir stays.")


@dataclasses.dataclass(frozen=True)
class Pod:
    """A pod by its name, and how to make it.

    Attributes:
      accelerator: as gcloud names it.
      script: what every worker runs at boot; None where the pod is only looked at.
    """

    cloud: Gcloud
    name: str
    accelerator: str = ""
    script: Path | None = None
    spot: bool = False
    queued: bool = False
    slices: int = 1

    @property
    def nodes(self) -> list[str]:
        if self.slices == 1:
            return [self.name]
        return [f"{self.name}-{index}" for index in range(self.slices)]

    def create_command(self) -> list[str]:
        assert self.script is not None
        version = _VERSIONS[Topology.parse(self.accelerator).generation]
        if self.queued:
            return self.cloud.create_queued(
                self.name,
                self.accelerator,
                version,
                self.script,
                spot=self.spot,
                slices=self.slices,
            )
        return self.cloud.create_node(
            self.name, self.accelerator, version, self.script, spot=self.spot
        )

    def delete_command(self) -> list[str]:
        if self.queued:
            return self.cloud.delete_queued(self.name)
        return self.cloud.delete_node(self.name)

    def state(self) -> str | None:
        """READY, GONE (preempted: it must be made anew), what it is doing else, or None."""
        if self.queued:
            queue = self.cloud.queued_state(self.name)
            if queue is None or queue in _QUEUE_GONE:
                return None if queue is None else "GONE"
            if queue != "ACTIVE":
                return queue
        states = [self.cloud.node_state(node) for node in self.nodes]
        if any(state in _GONE for state in states):
            return "GONE"
        waiting = [state for state in states if state != "READY"]
        return waiting[0] if waiting else "READY"

    def ready(self, poll_seconds: float) -> bool:
        """Creates the pod where it is missing or preempted, and waits for it.

        Returns:
          Whether it was created; if not, its workers have not run the script.
        """
        created, said = False, ""
        while (state := self.state()) != "READY":
            if state == "GONE":
                _say(f"{self.name} was preempted; deleting what is left")
                call(self.delete_command())
            if state in (None, "GONE"):
                _say(f"creating {self.name}: {self.accelerator} in {self.cloud.zone}")
                call(self.create_command())
                created = True
                continue
            if state != said:
                _say(f"{self.name}: {state}")
                said = str(state)
            time.sleep(poll_seconds)
        return created


# -------------------------------------------------------------------- the code
def archive(target: str, dry_run: bool) -> tuple[str, str]:
    """Puts the committed code into the workdir; returns its place and the commit.

    Raises:
      UserError: this is no git checkout, or the workdir cannot be written.
    """
    commit = _git("rev-parse", "--short=12", "HEAD")
    dirty = _git("status", "--porcelain")
    if dirty:
        names = [line[3:] for line in dirty.splitlines()]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        _say(f"NOT shipped, for it is not committed: {', '.join(names[:3])}{more}")
    place = f"{target}/code/{commit}.tar.gz"
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / "code.tar.gz"
        commands = [
            ["git", "-C", str(ROOT), "archive", "--format=tar.gz", "-o", str(local), "HEAD"]
        ]
        if target.startswith("gs://"):
            commands.append(["gcloud", "storage", "cp", "--quiet", str(local), place])
        else:
            commands.append(["mkdir", "-p", str(Path(place).parent)])
            commands.append(["cp", str(local), place])
        for line in commands:
            _do(line, dry_run)
    return place, commit


def _git(*arguments: str) -> str:
    result = call(["git", "-C", str(ROOT), *arguments], check=False)
    if result.returncode:
        raise UserError(f"git: {result.stderr.strip()}; the code that is shipped is a commit")
    return result.stdout.strip("\n")


# -------------------------------------------------------------------- the run
def launch(more: Sequence[str]) -> None:
    """Everything from the preflight to the end of the run."""
    values = flags.FLAGS
    job, config = jobs.chosen()
    workdir = command.required("workdir", "gs://BUCKET/RUN, which all workers can write")
    accelerator = command.required("type", "the accelerator, such as v5litepod-256")
    topology = jobs.slice_topology(accelerator)
    if values.slices > 1 and not values.queued:
        raise UserError("--slices needs --queued: only the queue gives several slices at once")

    if values.preflight and job.takes_config:
        slices = f"{values.slices}x " if values.slices > 1 else ""
        preflight = ["-m", "shortcut_tpu.preflight", *config, f"--topology={slices}{topology.name}"]
        _do([sys.executable, *preflight], values.dry_run)

    source, commit = archive(workdir.rstrip("/"), values.dry_run)
    pod = _pod()
    script = worker_script.render(
        source=source,
        commit=commit,
        run=f"{pod.cloud.zone}/{pod.name}",
        arguments=job.arguments(workdir=workdir, config=config, more=more),
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "startup-script.sh"
        path.write_text(script)
        pod = dataclasses.replace(pod, accelerator=accelerator, script=path)
        if values.dry_run:
            print(_shown(pod.create_command()), "with this startup script:", script, sep="\n")
            return
        keep_running(pod, script, values.poll_seconds)
    if job == JOBS["train"]:
        _say(f"curves: tensorboard --logdir={workdir}")


def keep_running(pod: Pod, script: str, poll_seconds: float) -> None:
    """Starts the run and follows it to its end, through any number of preemptions.

    Raises:
      UserError: the run ended with an error, or gcloud did.
    """
    fresh = pod.ready(poll_seconds)
    if not fresh:
        _say(f"{pod.name} is up: starting the run on its workers")
        for node in pod.nodes:
            call(pod.cloud.ssh(node, "all", worker_script.as_root(script)))
    lost = 0
    while lost < _MAX_LOST:
        follow(pod)
        if pod.state() != "READY":
            pod.ready(poll_seconds)
            continue
        status = run_status(pod)
        lost = lost + 1 if status == _UNREACHABLE else 0
        if status == "0":
            return
        if status.isdecimal():
            raise UserError(f"the run ended with status {status}; its log is above")
        # Not started yet, or the connection was lost.
        time.sleep(poll_seconds)
    raise UserError(f"{pod.nodes[0]} cannot be reached over ssh, see above; the run itself goes on")


def follow(pod: Pod) -> None:
    """Shows the first worker's log until the run or the connection ends."""
    remote = worker_script.as_root(worker_script.FOLLOW)
    subprocess.run(pod.cloud.ssh(pod.nodes[0], "0", remote), stdin=subprocess.DEVNULL, check=False)


def run_status(pod: Pod) -> str:
    """What the supervisor on the first worker ended with: a number, or a word that it has not."""
    result = call(
        pod.cloud.ssh(pod.nodes[0], "0", worker_script.as_root(worker_script.STATUS)), check=False
    )
    if result.returncode:
        return _UNREACHABLE
    return (result.stdout.split() or ["running"])[-1]


def look() -> None:
    """--status, --logs, --stop, --delete."""
    values, pod = flags.FLAGS, _pod()
    if values.dry_run:
        remote = worker_script.FOLLOW if values.logs else worker_script.stop()
        print(
            _shown(pod.delete_command() if values.delete else pod.cloud.ssh(pod.name, "0", remote))
        )
        return
    state = pod.state()
    if state is None:
        raise UserError(f"--name={pod.name}: no such pod in {pod.cloud.zone}")
    if values.delete:
        call(pod.delete_command())
        _say(f"{pod.name} is deleted; the workdir stays")
        return
    if values.status:
        run = run_status(pod) if state == "READY" else "none"
        print(f"pod {state}", f"run {run}", sep="\n")
        return
    if state != "READY":
        raise UserError(f"{pod.name} is {state}")
    if values.stop:
        _say("asking the run to save and end")
        for node in pod.nodes:
            call(pod.cloud.ssh(node, "all", worker_script.as_root(worker_script.stop())))
    else:
        follow(pod)


def _pod() -> Pod:
    values = flags.FLAGS
    name = command.required("name", "the name of the pod")
    if not re.fullmatch(_NAME, name):
        raise UserError(f"--name={name}: at most 50 lower-case letters, digits and hyphens")
    zone = command.required("zone", "the zone of the pod, such as us-central1-a")
    cloud = Gcloud(zone, values.project)
    return Pod(cloud, name, spot=values.spot, queued=values.queued, slices=values.slices)


def _do(line: Sequence[str], dry_run: bool) -> None:
    """Runs a command, its output shown; a failure ends this one, too."""
    if dry_run:
        print(_shown(line))
        return
    result = subprocess.run(
        line, cwd=ROOT, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
    )
    if result.returncode:
        lines = [one for one in result.stderr.splitlines() if one.startswith("error: ")]
        raise UserError(lines[-1].removeprefix("error: ") if lines else explain(result.stderr))


def _shown(line: Sequence[str]) -> str:
    return shlex.join(line)


def _say(line: str) -> None:
    print(line, flush=True)


def main(more: Sequence[str]) -> None:
    values = flags.FLAGS
    if values.status or values.logs or values.stop or values.delete:
        look()
    else:
        launch(more)


if __name__ == "__main__":
    after = jobs.split_arguments()
    command.run(lambda: main(after), define_flags)

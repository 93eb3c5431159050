"""Trains a config on a TPU pod and resumes it after preemption; needs gcloud.

  launch/tpu_pod.sh --config=imagenet256_xl --name=NAME --zone=us-central1-a \\
      --type=v5litepod-256 --workdir=gs://BUCKET/RUN \\
      --config.evaluation.features=inception:gs://BUCKET/inception.pth \\
      --config.evaluation.reference=gs://BUCKET/VIRTUAL_imagenet256_labeled.npz
  launch/tpu_pod.sh --job=evaluate ... --workdir=gs://BUCKET/RUN -- --steps=1,4,128
  launch/tpu_pod.sh --name=NAME --zone=us-central1-a --status     # or --logs, --stop, --delete

First checks here that the run fits the pod. Then creates the pod or reuses the one of that name,
ships the committed code through the workdir, starts the run on every worker under the supervisor,
and follows the log. A preempted pod is deleted and created again, and the run continues from the
newest checkpoint. While the zone has no capacity it asks again with growing pauses. Ctrl-C leaves
the pod running. --config.KEY=VALUE and arguments after -- are passed to the command on the pod.
--dry_run prints the commands and runs none. --create_flags and --ssh_flags pass gcloud's own flags:

  --create_flags="--internal-ips --network=N --service-account=A --labels=team=x --reserved"
  --gcloud_track=alpha --ssh_flags=--tunnel-through-iap
"""

from collections.abc import Sequence
from pathlib import Path
import re
import shlex
import subprocess
import tempfile
import time

from absl import flags

from data_pipeline.errors import UserError
from launch import jobs, pods, worker_script
from launch.gcloud import MAX_TRIES, Gcloud, GcloudError
from launch.jobs import JOBS, ROOT
from shortcut_tpu.cli import command
from shortcut_tpu.pod.topologies import Topology

_VERSIONS = {
    "v4": "tpu-ubuntu2204-base",
    "v5e": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}
_UNREACHABLE = "unreachable"
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
    flags.DEFINE_string("create_flags", "", "gcloud's own, for what it creates, in one word.")
    flags.DEFINE_string("ssh_flags", "", "gcloud's own, for its ssh.")
    flags.DEFINE_enum("gcloud_track", "", ["", "alpha", "beta"], "Where gcloud knows such flags.")
    flags.DEFINE_boolean("preflight", True, "Walk the run for the pod first.")
    flags.DEFINE_float("poll_seconds", 20.0, "Between looks at a pod that is not ready.", 0.01)
    flags.DEFINE_boolean("dry_run", False, "Print the commands and run none.")
    flags.DEFINE_boolean("status", False, "Print the states of the pod and of the run.")
    flags.DEFINE_boolean("logs", False, "Follow the log of the first worker.")
    flags.DEFINE_boolean("stop", False, "Save and end the run; keep the pod.")
    flags.DEFINE_boolean("delete", False, "Delete the pod; the workdir stays.")


def _pod() -> tuple[Gcloud, str]:
    """What the flags say of a pod, whether it is there or not."""
    values = flags.FLAGS
    name = command.required("name", "the name of the pod")
    if not re.fullmatch(_NAME, name):
        raise UserError(f"--name={name}: at most 50 lower-case letters, digits and hyphens")
    cloud = Gcloud(
        command.required("zone", "the zone of the pod, such as us-central1-a"),
        values.project,
        create_flags=_words("create_flags"),
        ssh_flags=_words("ssh_flags"),
        track=values.gcloud_track,
        pause_seconds=values.poll_seconds,
    )
    return cloud, name


def _words(flag: str) -> list[str]:
    try:
        return shlex.split(flags.FLAGS[flag].value or "")
    except ValueError as error:
        raise UserError(f"--{flag}: {error}") from None


def create_command(cloud: Gcloud, name: str, accelerator: str, script: Path) -> list[str]:
    """The command that makes the pod of the flags."""
    values, version = flags.FLAGS, _VERSIONS[Topology.parse(accelerator).generation]
    what = (name, accelerator, version, script)
    if values.queued:
        return cloud.create_queued(*what, spot=values.spot, slices=values.slices)
    return cloud.create_node(*what, spot=values.spot)


# -------------------------------------------------------------------- the code
def archive(cloud: Gcloud, target: str, dry_run: bool) -> tuple[str, str]:
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
            if line[0] == "gcloud" and not dry_run:
                cloud.call(line)
            elif dry_run:
                print(_shown(line))
            else:
                jobs.do(line)
    return place, commit


def _git(*arguments: str) -> str:
    line = ["git", "-C", str(ROOT), *arguments]
    result = subprocess.run(line, capture_output=True, text=True, check=False)
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
    cloud, name = _pod()
    if not values.dry_run:
        cloud.refuse_wrong_ssh_flags(name)

    if values.preflight and job.takes_config:
        line = jobs.preflight(job, config, topology, values.slices)
        if values.dry_run:
            print(_shown(line))
        else:
            jobs.do(line)

    source, commit = archive(cloud, workdir.rstrip("/"), values.dry_run)
    script = worker_script.render(
        source=source,
        commit=commit,
        run=f"{cloud.zone}/{name}",
        arguments=job.arguments(workdir=workdir, config=config, more=more),
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "startup-script.sh"
        path.write_text(script)
        create = create_command(cloud, name, accelerator, path)
        if values.dry_run:
            print(_shown(create), "with this startup script:", script, sep="\n")
            return
        what = f"{accelerator} in {cloud.zone}"
        maker = pods.Maker(cloud, name, create, what, values.poll_seconds, _say)
        try:
            keep_running(maker, script)
        except KeyboardInterrupt:
            _say(f"\n{name} stays, or its place in the queue, and costs money: --delete ends it")
            raise
    if job == JOBS["train"]:
        _say(f"curves: tensorboard --logdir={workdir}")


def keep_running(maker: pods.Maker, script: str) -> None:
    """Starts the run and follows it to its end, through any number of preemptions.

    Raises:
      UserError: the run ended with an error, or gcloud did.
    """
    cloud = maker.cloud
    found, fresh = maker.ready(had=False)
    if not fresh:
        _say(f"{maker.name} is up: starting the run on its workers")
        for node in found.nodes:
            cloud.call(cloud.ssh(node, "all", worker_script.as_root(script)))
    try:
        status = until_ended(maker, found)
    except GcloudError as error:
        raise UserError(f"{error}; the run itself goes on: start this again to follow it") from None
    if status != "0":
        raise UserError(f"the run ended with status {status}; its log is above")


def until_ended(maker: pods.Maker, found: pods.Found) -> str:
    """Follows a run that has been started, and returns the status that it ends with."""
    lost = 0
    while lost < MAX_TRIES:
        follow(maker.cloud, found)
        if pods.find(maker.cloud, maker.name).state != pods.READY:
            found, _ = maker.ready(had=True)
            continue
        status = run_status(maker.cloud, found)
        lost = lost + 1 if status == _UNREACHABLE else 0
        if status.isdecimal():
            return status
        # Not started yet, or the connection was lost.
        time.sleep(maker.poll_seconds)
    raise UserError(
        f"{found.nodes[0]} cannot be reached over ssh, see above; the run itself goes on"
    )


def follow(cloud: Gcloud, found: pods.Found) -> None:
    """Shows the first worker's log until the run or the connection ends."""
    remote = worker_script.as_root(worker_script.FOLLOW)
    subprocess.run(cloud.ssh(found.nodes[0], "0", remote), stdin=subprocess.DEVNULL, check=False)


def run_status(cloud: Gcloud, found: pods.Found) -> str:
    """What the supervisor on the first worker ended with: a number, or a word that it has not."""
    remote = worker_script.as_root(worker_script.STATUS)
    try:
        said = cloud.call(cloud.ssh(found.nodes[0], "0", remote), tries=1)
    except GcloudError:
        return _UNREACHABLE
    return (said.split() or ["running"])[-1]


def look() -> None:
    """--status, --logs, --stop, --delete: of a pod as it is found, however it was made."""
    values = flags.FLAGS
    cloud, name = _pod()
    if values.dry_run:
        remote = worker_script.stop() if values.stop else worker_script.FOLLOW
        lines = [cloud.ssh(name, "0", remote)]
        if values.status:
            lines = [cloud.command("tpu-vm", "describe", name)]
        if values.delete:
            lines = [cloud.delete_queued(name), cloud.delete_node(name)]
        print(*map(_shown, lines), sep="\n")
        return
    found = pods.find(cloud, name)
    if found.state is None:
        raise UserError(f"--name={name}: no such pod in {cloud.zone}")
    if values.delete:
        pods.delete(cloud, found)
        _say(f"{name} is deleted; the workdir stays")
        return
    if values.status:
        run = run_status(cloud, found) if found.state == pods.READY else "none"
        failure = f" ({found.failure.line})" if found.failure else ""
        print(f"pod {found.state}{failure}", f"run {run}", sep="\n")
        return
    if found.state != pods.READY:
        raise UserError(f"{name} is {found.state}")
    if values.stop:
        _say("asking the run to save and end")
        for node in found.nodes:
            cloud.call(cloud.ssh(node, "all", worker_script.as_root(worker_script.stop())))
    else:
        follow(cloud, found)


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

"""Calls gcloud: TPU nodes, queued resources, shells on workers.

Arguments go to gcloud as a list, never through a shell of this machine.

Usage:
  cloud = Gcloud(zone="us-central1-a")
  cloud.call(cloud.create_node("pod", "v5litepod-16", "v2-alpha-tpuv5-lite", script, spot=True))
  cloud.node("pod")     # {"state": "READY", ...}; None where there is none
"""

from collections.abc import Sequence
import dataclasses
import json
from pathlib import Path
import shutil
import subprocess
import time
from typing import Any

from data_pipeline.errors import UserError
from launch import gcloud_errors
from launch.gcloud_errors import Complaint, Kind

MAX_TRIES = 30
_LONGEST_PAUSE = 3.0
# What the launcher itself says of a pod.
_OURS = (
    "--zone",
    "--project",
    "--metadata-from-file",
    "--accelerator-type",
    "--topology",
    "--type",
    "--node-id",
    "--node-count",
    "--node-prefix",
    "--worker",
    "--command",
)


class GcloudError(UserError):
    """gcloud refused, or cannot be reached."""

    def __init__(self, complaint: Complaint):
        super().__init__(complaint.line)
        self.complaint = complaint

    @property
    def kind(self) -> Kind:
        return self.complaint.kind


@dataclasses.dataclass(frozen=True)
class Gcloud:
    """Calls on one zone of one project.

    Attributes:
      project: None is the one that gcloud is configured with.
      create_flags: gcloud's own, for what is created; they overrule ours.
      ssh_flags: gcloud's own, for ssh.
      track: "alpha" or "beta", where those flags are only known there.
      pause_seconds: before a call that failed in passing is made again; it grows threefold.
    """

    zone: str
    project: str | None = None
    create_flags: Sequence[str] = ()
    ssh_flags: Sequence[str] = ()
    track: str = ""
    pause_seconds: float = 20.0

    def __post_init__(self) -> None:
        """Raises UserError where a flag is one that the launcher sets by a flag of its own."""
        for flag in (*self.create_flags, *self.ssh_flags):
            name = flag.partition("=")[0]
            if not name.startswith("-"):
                raise UserError(f"{flag!r} is no flag of gcloud; write --NAME=VALUE")
            if name in _OURS:
                raise UserError(f"{name} is not yours to hand on: the launcher sets it")

    def command(self, *arguments: str, track: str = "") -> list[str]:
        """The command line of a call below `gcloud compute tpus`."""
        project = [f"--project={self.project}"] if self.project else []
        first = ["gcloud", *([track] if track else []), "compute", "tpus"]
        return [*first, *arguments, f"--zone={self.zone}", *project, "--quiet"]

    def create_node(
        self, name: str, accelerator: str, version: str, startup_script: Path, *, spot: bool
    ) -> list[str]:
        """The command that creates a TPU VM whose workers run a script at every boot."""
        return self.command(
            *("tpu-vm", "create", name),
            f"--accelerator-type={accelerator}",
            f"--version={version}",
            f"--metadata-from-file=startup-script={startup_script}",
            *(["--spot"] if spot else []),
            *self.create_flags,
            track=self.track,
        )

    def create_queued(
        self,
        name: str,
        accelerator: str,
        version: str,
        startup_script: Path,
        *,
        spot: bool,
        slices: int,
    ) -> list[str]:
        """The command that queues for one TPU VM of the same name, or for NAME-0, NAME-1, ..."""
        nodes = [f"--node-id={name}"]
        if slices > 1:
            nodes = [f"--node-count={slices}", f"--node-prefix={name}"]
        return self.command(
            *("queued-resources", "create", name),
            *nodes,
            f"--accelerator-type={accelerator}",
            f"--runtime-version={version}",
            f"--metadata-from-file=startup-script={startup_script}",
            *(["--spot"] if spot else []),
            *self.create_flags,
            track=self.track,
        )

    def delete_node(self, name: str) -> list[str]:
        return self.command("tpu-vm", "delete", name)

    def delete_queued(self, name: str) -> list[str]:
        return self.command("queued-resources", "delete", name, "--force")

    def ssh(self, node: str, worker: str, remote: str, *more: str) -> list[str]:
        """The command that runs a line of shell on a worker, or on "all" of them."""
        return self.command(
            *("tpu-vm", "ssh", node),
            f"--worker={worker}",
            f"--command={remote}",
            "--ssh-flag=-o ServerAliveInterval=30",
            *self.ssh_flags,
            *more,
            track=self.track,
        )

    def refuse_wrong_ssh_flags(self, node: str) -> None:
        """Asks the client itself, before anything is paid for.

        Raises:
          GcloudError: it does not know them.
        """
        if not self.ssh_flags and not self.track:
            return
        try:
            self.call(self.ssh(node, "0", "true", "--dry-run"), tries=1)
        except GcloudError as error:
            # That there is no such node yet, for one, says that the flags were read.
            if error.kind is Kind.USAGE:
                raise

    def node(self, name: str) -> dict[str, Any] | None:
        """A TPU VM as the API describes it; None where there is none of this name."""
        return self._describe("tpu-vm", name)

    def queued(self, name: str) -> dict[str, Any] | None:
        """A queued resource as the API describes it; None where there is none of this name."""
        return self._describe("queued-resources", name)

    def _describe(self, kind: str, name: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads(
                self.call(self.command(kind, "describe", name, "--format=json"))
            )
        except GcloudError as error:
            if error.kind is Kind.MISSING:
                return None
            raise
        except ValueError:
            raise UserError("gcloud: what it describes is no JSON; is it up to date?") from None
        return found

    def call(self, command: Sequence[str], tries: int = MAX_TRIES) -> str:
        """Runs a gcloud command, again where it failed in passing; returns what it printed.

        Raises:
          GcloudError: it failed.
          UserError: gcloud is not installed.
        """
        if shutil.which(command[0]) is None:
            raise UserError("gcloud is not installed: https://cloud.google.com/sdk/docs/install")
        for attempt in range(1, tries + 1):
            result = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
            )
            if result.returncode == 0:
                return result.stdout
            complaint = gcloud_errors.read(result.stderr)
            if not complaint.passes or attempt == tries:
                break
            pause = self.pause_seconds * min(attempt, _LONGEST_PAUSE)
            print(f"{complaint.line}; trying again in {pause:g} s", flush=True)
            time.sleep(pause)
        raise GcloudError(complaint)

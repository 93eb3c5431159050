"""The gcloud client as functions: TPU nodes, queued resources, shells on their workers.

Arguments go to gcloud as a list, never through a shell of this machine.

Usage:
  cloud = Gcloud(zone="us-central1-a", project=None)
  cloud.create_node("pod", "v5litepod-16", "v2-alpha-tpuv5-lite", script, spot=True)
  cloud.node_state("pod")     # "READY", ...; None where there is none
"""

from collections.abc import Sequence
import dataclasses
import json
from pathlib import Path
import shutil
import subprocess
from typing import Any

from data_pipeline.errors import UserError

_HINTS = {
    "PERMISSION_DENIED": "your account may not do this in the project: see `gcloud auth list` and "
    "ask for the role roles/tpu.admin",
    "RESOURCE_EXHAUSTED": "the project's quota or the zone's stock is used up: ask for quota, try "
    "another zone, or wait in the queue with --queued",
    "UNAUTHENTICATED": "run `gcloud auth login`",
}


@dataclasses.dataclass(frozen=True)
class Gcloud:
    """Calls on one zone of one project; None is the project that gcloud is configured with."""

    zone: str
    project: str | None = None

    def command(self, *arguments: str) -> list[str]:
        """The command line of a call below `gcloud compute tpus`."""
        project = [f"--project={self.project}"] if self.project else []
        return ["gcloud", "compute", "tpus", *arguments, f"--zone={self.zone}", *project, "--quiet"]

    def create_node(
        self, name: str, accelerator: str, version: str, startup_script: Path, *, spot: bool
    ) -> list[str]:
        """The command that creates a TPU VM whose workers run a script at every boot."""
        return self.command(
            "tpu-vm",
            "create",
            name,
            f"--accelerator-type={accelerator}",
            f"--version={version}",
            f"--metadata-from-file=startup-script={startup_script}",
            *(["--spot"] if spot else []),
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
            "queued-resources",
            "create",
            name,
            *nodes,
            f"--accelerator-type={accelerator}",
            f"--runtime-version={version}",
            f"--metadata-from-file=startup-script={startup_script}",
            *(["--spot"] if spot else []),
        )

    def delete_node(self, name: str) -> list[str]:
        return self.command("tpu-vm", "delete", name)

    def delete_queued(self, name: str) -> list[str]:
        return self.command("queued-resources", "delete", name, "--force")

    def ssh(self, node: str, worker: str, remote: str) -> list[str]:
        """The command that runs a line of shell on a worker, or on "all" of them."""
        alive = "--ssh-flag=-o ServerAliveInterval=30"
        return self.command(
            "tpu-vm", "ssh", node, f"--worker={worker}", f"--command={remote}", alive
        )

    def node_state(self, name: str) -> str | None:
        """CREATING, READY, PREEMPTED, ...; None where there is no such node."""
        found = self._describe("tpu-vm", name)
        return None if found is None else str(found.get("state"))

    def queued_state(self, name: str) -> str | None:
        """WAITING_FOR_RESOURCES, ACTIVE, SUSPENDED, ...; None where nothing is queued."""
        found = self._describe("queued-resources", name)
        if found is None:
            return None
        state = found.get("state", {})
        return str(state.get("state") if isinstance(state, dict) else state)

    def _describe(self, kind: str, name: str) -> dict[str, Any] | None:
        result = call(self.command(kind, "describe", name, "--format=json"), check=False)
        if result.returncode == 0:
            return json.loads(result.stdout)
        if "NOT_FOUND" in result.stderr:
            return None
        raise UserError(explain(result.stderr))


def call(command: Sequence[str], *, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs a gcloud command and keeps its output.

    Raises:
      UserError: gcloud is missing or, with `check`, failed.
    """
    if shutil.which(command[0]) is None:
        raise UserError("gcloud is not installed: https://cloud.google.com/sdk/docs/install")
    result = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if check and result.returncode:
        raise UserError(explain(result.stderr))
    return result


def explain(stderr: str) -> str:
    """What gcloud complained of, in one line, and what helps where that is known."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    said = next((line for line in lines if line.startswith("ERROR: ")), (lines or ["failed"])[-1])
    hint = next((hint for code, hint in _HINTS.items() if code in stderr), None)
    return f"gcloud: {said.removeprefix('ERROR: ')}" + (f" ({hint})" if hint else "")

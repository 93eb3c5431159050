"""Builds the JobSet of a run: one Job for each slice, one Kubernetes pod for each VM.

What ends a pod decides what becomes of the run. A node that is taken away (preemption, maintenance)
costs no restart: its pods are made again, and the others wait for them. What a person has to mend
fails the JobSet at once. All else starts every pod anew, `max_restarts` times.

Usage:
  manifest = render(Run(name="xl", image="...", topology=Topology.parse("v5e-256"), ...))
  yaml.safe_dump(manifest)
"""

from collections.abc import Sequence
import dataclasses
import shlex
from typing import Any

from data_pipeline import exit_reason
from data_pipeline.errors import UserError
from shortcut_tpu.pod.topologies import Topology

_ACCELERATORS = {
    "v4": "tpu-v4-podslice",
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
}
_SINGLE_HOST_CHIPS = 8
_CHIPS_PER_VM = 4
_CONTAINER = "host"
# A pod that fails is started again in place a few times; then the JobSet starts all of them anew.
_RESTARTS_IN_PLACE = 3
# The supervisor has to end before Kubernetes kills it.
_SPARE_SECONDS = 30


@dataclasses.dataclass(frozen=True)
class Run:
    """What to run and where.

    Attributes:
      arguments: what follows `python` in every pod.
      grace_seconds: from SIGTERM to the kill; the last save has to fit.
      max_restarts: of the whole JobSet, for failures of the command's own.
    """

    name: str
    image: str
    topology: Topology
    arguments: Sequence[str]
    slices: int = 1
    grace_seconds: int = 600
    max_restarts: int = 50

    @property
    def chips_per_vm(self) -> int:
        if len(self.topology.grid) == 2 and self.topology.chips <= _SINGLE_HOST_CHIPS:
            return self.topology.chips
        return min(_CHIPS_PER_VM, self.topology.chips)

    @property
    def command(self) -> list[str]:
        """What every pod runs."""
        return [
            *("python", "-m", "launch.supervisor", f"--run={self.name}"),
            f"--max_restarts={_RESTARTS_IN_PLACE}",
            f"--grace_seconds={self.grace_seconds - _SPARE_SECONDS}",
            "--",
            *self.arguments,
        ]


def render(run: Run) -> dict[str, Any]:
    """The manifest, for `kubectl apply`.

    Raises:
      UserError: the topology has no node pool on GKE.
    """
    generation = run.topology.generation
    if generation not in _ACCELERATORS:
        raise UserError(f"--type={run.topology.name}: GKE node pools are not known for it")
    vms = run.topology.chips // run.chips_per_vm
    job = {
        "parallelism": vms,
        "completions": vms,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": _CONTAINER,
                        "operator": "In",
                        "values": [exit_reason.REFUSED_STATUS],
                    },
                },
                {
                    "action": "Ignore",
                    "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                },
            ]
        },
        "template": {"spec": _pod(run)},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": run.name,
            "annotations": {
                "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
            },
        },
        "spec": {
            "failurePolicy": {
                "maxRestarts": run.max_restarts,
                # A Job has this reason where a pod's status was the refusal's, and no other.
                "rules": [
                    {
                        "name": "refused",
                        "action": "FailJobSet",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [
                {"name": "slice", "replicas": run.slices, "template": {"spec": job}}
            ],
        },
    }


def _pod(run: Run) -> dict[str, Any]:
    """What runs on each VM of a slice."""
    chips = {"google.com/tpu": run.chips_per_vm}
    container = {
        "name": _CONTAINER,
        "image": run.image,
        # Kubernetes puts variables in the place of $(NAME), and takes $$ for a dollar.
        "command": [argument.replace("$", "$$") for argument in run.command],
        "ports": [{"containerPort": 8471}, {"containerPort": 8080}],
        "securityContext": {"privileged": True},
        "resources": {"requests": chips, "limits": chips},
        "volumeMounts": [{"name": "dshm", "mountPath": "/dev/shm"}],
    }
    return {
        "restartPolicy": "Never",
        "hostNetwork": True,
        "dnsPolicy": "ClusterFirstWithHostNet",
        "terminationGracePeriodSeconds": run.grace_seconds,
        "nodeSelector": {
            "cloud.google.com/gke-tpu-accelerator": _ACCELERATORS[run.topology.generation],
            "cloud.google.com/gke-tpu-topology": "x".join(map(str, run.topology.grid)),
        },
        "containers": [container],
        "volumes": [{"name": "dshm", "emptyDir": {"medium": "Memory"}}],
    }


def xpk_command(
    run: Run, *, accelerator: str, cluster: str, zone: str, project: str | None
) -> list[str]:
    """The same run as a command of XPK.

    XPK joins the command to a line of shell, so each argument is quoted for that. By itself it
    starts again what ended with 42 or more than 126, and fails the run at once for any other
    status: right for a refusal, and wrong for a supervisor that gave up.
    """
    return [
        *("xpk", "workload", "create"),
        f"--workload={run.name}",
        f"--cluster={cluster}",
        f"--zone={zone}",
        *([f"--project={project}"] if project else []),
        f"--tpu-type={accelerator}",
        f"--num-slices={run.slices}",
        f"--docker-image={run.image}",
        f"--max-restarts={run.max_restarts}",
        f"--restart-on-exit-codes={exit_reason.GAVE_UP_STATUS}",
        f"--termination-grace-period-seconds={run.grace_seconds}",
        f"--command={shlex.join(run.command)}",
    ]

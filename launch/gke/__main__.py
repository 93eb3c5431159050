"""Prints a run as a JobSet for GKE, or as an XPK command.

  python -m launch.gke --config=imagenet256_xl --name=xl --type=v5litepod-256 --image=IMAGE \\
      --workdir=gs://BUCKET/RUN --config.evaluation.features=inception:gs://BUCKET/inception.pth \\
      --config.evaluation.reference=gs://BUCKET/VIRTUAL_imagenet256_labeled.npz \\
      | kubectl apply -f -
  python -m launch.gke ... --cluster=CLUSTER --zone=ZONE      # the XPK command instead

First checks here that the run fits the slices, which takes minutes; --nopreflight skips that. Build
the image from launch/gke/Dockerfile. --config.KEY=VALUE and arguments after -- are passed to the
command on the pod; --job runs another command than `train`.
"""

from collections.abc import Sequence
import re
import shlex
import sys

from absl import flags
import yaml

from data_pipeline.errors import UserError
from launch import jobs
from launch.gke.jobset import Run, render, xpk_command
from shortcut_tpu.cli import command

_NAME = r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?"


def define_flags() -> None:
    jobs.define_job()
    flags.DEFINE_string("name", None, "Name of the run in the cluster.")
    flags.DEFINE_string("type", None, "Accelerator of a slice, such as v5litepod-256.")
    flags.DEFINE_string("image", None, "The image to run.")
    flags.DEFINE_string("workdir", None, "Folder of the run, gs://BUCKET/RUN.")
    flags.DEFINE_integer("slices", 1, "Slices of that type.", 1)
    flags.DEFINE_boolean("preflight", True, "Walk the run for the pod first; it takes minutes.")
    flags.DEFINE_integer("grace_seconds", 600, "Time for the last save of a pod that must go.", 60)
    flags.DEFINE_string("cluster", None, "Print the XPK command for this cluster instead.")
    flags.DEFINE_string("zone", None, "Zone of the cluster, for XPK.")
    flags.DEFINE_string("project", None, "Project of the cluster, for XPK; its own by default.")


def main(more: Sequence[str]) -> None:
    values = flags.FLAGS
    job, config = jobs.chosen()
    name = command.required("name", "the name of the run in the cluster")
    if not re.fullmatch(_NAME, name):
        raise UserError(f"--name={name}: at most 40 lower-case letters, digits and hyphens")
    workdir = command.required("workdir", "gs://BUCKET/RUN, which all pods can write")
    accelerator = command.required("type", "the accelerator, such as v5litepod-256")
    run = Run(
        name=name,
        image=command.required("image", "the image of launch/gke/Dockerfile"),
        topology=jobs.slice_topology(accelerator),
        arguments=job.arguments(workdir=workdir, config=config, more=more),
        slices=values.slices,
        grace_seconds=values.grace_seconds,
    )
    zone = command.required("zone", "the zone of the cluster") if values.cluster else ""
    if values.preflight and job.takes_config:
        # Standard output is what kubectl reads.
        jobs.do(jobs.preflight(job, config, run.topology, run.slices), output=sys.stderr)
    if values.cluster:
        line = xpk_command(
            run,
            accelerator=accelerator,
            cluster=values.cluster,
            zone=zone,
            project=values.project,
        )
        print(shlex.join(line))
    else:
        print(yaml.safe_dump(render(run), sort_keys=False), end="")


if __name__ == "__main__":
    after = jobs.split_arguments()
    command.run(lambda: main(after), define_flags)

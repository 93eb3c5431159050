"""Rehearses a config's whole run on this machine; each process plays a host of a pod.

  ./launch/local_pod.sh --config=digits
  ./launch/local_pod.sh --config=digits --hosts=4 --workdir=runs/four --config.seed=1

Makes the records if the config names a source, trains on --hosts processes that find each other as
the hosts of a pod do, scores the result at 1 to 128 steps and draws a sheet of samples. A policy is
run in its task instead, and its trajectories are drawn. Called again it continues where it
stopped. If one process dies, all are stopped and started again, as on a pod. --config.KEY=VALUE
overrides a key of the config.
"""

from collections.abc import Sequence
import os
from pathlib import Path
import socket
import sys

from absl import flags

from data_pipeline.atomic_files import require_place
from data_pipeline.manifest import FILE_NAME as MANIFEST
from launch.supervisor import End, Member, Policy, supervise
from shortcut_tpu.cli import command
from shortcut_tpu.evaluation.inputs import require_named
from shortcut_tpu.pod import distributed

_SHEET_STEPS = "1,4,128"


def define_flags() -> None:
    command.define_config()
    flags.DEFINE_integer("hosts", 2, "Processes, each in the place of a pod's host.", 1)
    flags.DEFINE_integer("chips_per_host", 1, "Virtual devices of each process.", 1)
    flags.DEFINE_string("workdir", None, "Folder of the run; runs/CONFIG by default.")
    flags.DEFINE_integer("max_restarts", 5, "Deaths in a row that end the run.", 0)
    flags.DEFINE_string("steps", "1,4,32,128", "Step counts to score images at.")
    flags.DEFINE_string("json", None, "File for the distances.")


def host_environment(chips_per_host: int) -> dict[str, str]:
    """The environment of a process that stands for a host, without its place in the pod."""
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(chips_per_host),
        # XLA's CPU backend allocates its buffers anew in every step. By default glibc gives large
        # ones back to the kernel each time, and the page faults double the time of a step.
        "MALLOC_MMAP_THRESHOLD_": "2000000000",
        "MALLOC_TRIM_THRESHOLD_": "2000000000",
        "MALLOC_TOP_PAD_": "100000000",
    }


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def run_on_hosts(
    arguments: Sequence[str], hosts: int, chips_per_host: int, logs: Path, max_restarts: int = 0
) -> None:
    """Runs `python -m ARGUMENTS` once a host; the first one's standard output is shown.

    As on a pod, one process that dies ends them all, and all start again.

    Raises:
      UserError: it refused or died too often; the message says why, and where the log is.
      KeyboardInterrupt: it was stopped by SIGTERM.
    """
    module = arguments[0].rpartition(".")[2]

    def members() -> list[Member]:
        environment = host_environment(chips_per_host)
        if hosts > 1:
            environment[distributed.COORDINATOR] = f"localhost:{free_port()}"
            environment[distributed.NUM_PROCESSES] = str(hosts)
        return [
            Member(
                name=f"{arguments[0]} on host {host}",
                arguments=("-m", *arguments),
                environment={**environment, distributed.PROCESS_ID: str(host)},
                log=logs / f"{module}-host-{host}.log",
                show=host == 0,
            )
            for host in range(hosts)
        ]

    policy = Policy(max_restarts=max_restarts, longest_delay=10)
    if supervise(members, policy) is End.STOPPED:
        raise KeyboardInterrupt


def main() -> None:
    values = flags.FLAGS
    config = command.config()
    command.integers("steps")
    if not config.data.task:
        # It ends with an evaluation, whether or not there are any while it trains.
        require_named(config)
    path = command.config_path()
    overrides = [argument for argument in sys.argv[1:] if argument.startswith("--config.")]
    workdir = Path(values.workdir or f"runs/{path.stem}")
    require_place("workdir", str(workdir), "folder")
    command.require_places()

    def run(*arguments: str, hosts: int = values.hosts) -> None:
        logs = workdir / "logs"
        run_on_hosts(arguments, hosts, values.chips_per_host, logs, values.max_restarts)

    task, missing = config.data.task, not (Path(config.data.path) / MANIFEST).is_file()
    if missing and task:
        demonstrate = ("data_pipeline.demonstrate", f"--task={task}")
        run(*demonstrate, f"--output={config.data.path}", hosts=1)
    elif missing and config.data.source:
        run(
            "data_pipeline.encode_latents",
            f"--source={config.data.source}",
            f"--autoencoder={config.data.autoencoder}",
            f"--output={config.data.path}",
            *config.data.source_flags,
        )
    run("shortcut_tpu.train", f"--config={path}", *overrides, f"--workdir={workdir}")
    scores = values.json or str(workdir / ("success.json" if task else "distances.json"))
    picture = workdir / ("trajectories.png" if task else "samples.png")
    score, draw = (f"--workdir={workdir}", f"--json={scores}"), f"--output={picture}"
    if task:
        run("shortcut_tpu.rollout", *score, draw)
    else:
        run("shortcut_tpu.evaluate", *score, f"--steps={values.steps}")
        sheet = ("shortcut_tpu.sample", f"--workdir={workdir}", f"--steps={_SHEET_STEPS}", draw)
        run(*sheet, hosts=1)
    print(
        "",
        f"picture      {picture}",
        f"scores       {scores}",
        f"curves       .venv/bin/tensorboard --logdir={workdir}",
        sep="\n",
    )


if __name__ == "__main__":
    command.run(main, define_flags)

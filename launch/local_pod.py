"""Rehearses a config's whole run on this machine, as a pod of several processes.

  ./launch/local_pod.sh --config=digits
  ./launch/local_pod.sh --config=digits --hosts=4 --workdir=runs/four --config.seed=1

Makes the records if the config says from what, trains on --hosts processes that find each other
as the hosts of a pod do, scores the result at 1 .. 128 steps and draws a sheet of samples. Called
again it goes on where it stopped. Flags --config.KEY=VALUE override keys of the config.
"""

from collections.abc import Sequence
import os
from pathlib import Path
import signal
import socket
import subprocess
import sys
import time

from absl import flags

from data_pipeline.errors import UserError
from data_pipeline.manifest import FILE_NAME as MANIFEST
from shortcut_tpu import command, distributed

_SHEET_STEPS = "1,4,128"


def define_flags() -> None:
    command.define_config()
    flags.DEFINE_integer("hosts", 2, "Processes, each in the place of a pod's host.", 1)
    flags.DEFINE_integer("chips_per_host", 1, "Virtual devices of each process.", 1)
    flags.DEFINE_string("workdir", None, "Folder of the run; runs/CONFIG by default.")
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


def run_on_hosts(arguments: Sequence[str], hosts: int, chips_per_host: int, logs: Path) -> None:
    """Runs `python -m ARGUMENTS` once a host; the first one's standard output is shown.

    As on a pod, one process that fails ends them all.

    Raises:
      UserError: one failed; the message says which, and where its log is.
    """
    logs.mkdir(parents=True, exist_ok=True)
    environment = host_environment(chips_per_host)
    if hosts > 1:
        environment[distributed.COORDINATOR] = f"localhost:{free_port()}"
        environment[distributed.NUM_PROCESSES] = str(hosts)
    processes = []
    try:
        for host in range(hosts):
            with (logs / f"{arguments[0].rpartition('.')[2]}-host-{host}.log").open("w") as log:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", *arguments],
                        env={**environment, distributed.PROCESS_ID: str(host)},
                        stdin=subprocess.DEVNULL,
                        stdout=log if host else None,
                        stderr=log,
                    )
                )
        _wait(processes, arguments[0], logs)
    finally:
        _end(processes)


def _wait(processes: Sequence[subprocess.Popen[bytes]], module: str, logs: Path) -> None:
    while True:
        codes = [process.poll() for process in processes]
        for host, code in enumerate(codes):
            if code:
                log = logs / f"{module.rpartition('.')[2]}-host-{host}.log"
                raise UserError(f"{module} ended with status {code} on host {host}: {_reason(log)}")
        if not any(code is None for code in codes):
            return
        time.sleep(0.2)


def _reason(log: Path) -> str:
    """The line of a log that a person should read, and where the rest is."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    last = (said or lines or ["it printed nothing"])[-1]
    return f"{last} (log: {log})"


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> None:
    values = flags.FLAGS
    config = command.config()
    path = command.config_path()
    overrides = [argument for argument in sys.argv[1:] if argument.startswith("--config.")]
    workdir = Path(values.workdir or f"runs/{path.stem}")
    signal.signal(signal.SIGTERM, _stop)

    def run(*arguments: str, hosts: int = values.hosts) -> None:
        run_on_hosts(arguments, hosts, values.chips_per_host, workdir / "logs")

    if not (Path(config.data.path) / MANIFEST).is_file() and config.data.source:
        run(
            "data_pipeline.encode_latents",
            f"--source={config.data.source}",
            f"--autoencoder={config.data.autoencoder}",
            f"--output={config.data.path}",
            hosts=1,
        )
    run("shortcut_tpu.train", f"--config={path}", *overrides, f"--workdir={workdir}")
    scores = values.json or str(workdir / "distances.json")
    run("shortcut_tpu.evaluate", f"--workdir={workdir}", f"--json={scores}")
    picture = workdir / "samples.png"
    run(
        "shortcut_tpu.sample",
        f"--workdir={workdir}",
        f"--steps={_SHEET_STEPS}",
        f"--output={picture}",
        hosts=1,
    )
    print(
        "",
        f"distances    {scores}",
        f"samples      {picture}",
        f"curves       .venv/bin/tensorboard --logdir={workdir}",
        sep="\n",
    )


if __name__ == "__main__":
    command.run(main, define_flags)

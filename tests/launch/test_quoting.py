"""Whatever an argument holds, what runs on a pod gets that argument, and nothing else runs."""

from pathlib import Path
import re
import shlex
import subprocess

import pytest
import yaml

from launch import worker_script
from launch.gke.jobset import Run, render, xpk_command
from shortcut_tpu.pod.topologies import Topology

HOSTILE = [
    "--config.data.path='; touch hurt; '",
    '--config.data.path="; touch hurt; "',
    "--config.data.path=$(touch hurt)",
    "--config.data.path=`touch hurt`",
    "--config.data.path=$(HOME) $$HOME ${HOME} $",
    "--config.data.path=two\nlines & touch hurt",
    "--config.data.path={source} {{}} %s ~ * ä: [1, 2] # no comment",
    "",
    "--config.data.path=!!python/object/apply:os.system [touch hurt]",
]


def run() -> Run:
    topology = Topology.parse("v5litepod-16")
    return Run(name="x", image="image:1", topology=topology, arguments=HOSTILE)


def ended_by(command: list[str]) -> list[str]:
    return command[command.index("--") + 1 :]


def expanded(argument: str) -> str:
    """As the kubelet does it: $$ is a dollar, and $(NAME) the variable of that name."""
    return re.sub(
        r"\$\$|\$\((HOME)\)", lambda found: "HURT" if found[1] else "$", argument, flags=re.ASCII
    )


def test_what_a_worker_runs(tmp_path):
    """The script's last command, as bash understands it, with `run` printing what it was given."""
    script = worker_script.render(source="a", commit="c", run="x", arguments=HOSTILE)
    last = script[script.index("setsid bash") :]
    shell = f"""cd {shlex.quote(str(tmp_path))}; root="$PWD"
run() {{ printf '%s\\0' "$@"; }}
export -f run
{last}
wait"""
    subprocess.run(["bash", "-c", shell], check=True)
    given = (tmp_path / "log").read_text().split("\0")[:-1]
    assert ended_by(given) == HOSTILE
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_what_a_worker_runs_as_root(tmp_path):
    line = worker_script.as_root(f"printf '%s' {shlex.quote(HOSTILE[0])}")
    words = shlex.split(line)
    assert words[:2] == ["sudo", "-H"]
    found = subprocess.run(words[2:], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert found.stdout == HOSTILE[0]
    assert list(tmp_path.iterdir()) == []


def test_what_a_pod_of_kubernetes_runs():
    manifest = yaml.safe_load(yaml.safe_dump(render(run())))
    (job,) = manifest["spec"]["replicatedJobs"]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    assert ended_by([expanded(argument) for argument in container["command"]]) == HOSTILE


@pytest.mark.parametrize("argument", HOSTILE)
def test_what_xpk_runs(argument, tmp_path: Path):
    """XPK joins the command to a line of shell."""
    line = xpk_command(run(), accelerator="v5litepod-16", cluster="c", zone="z", project=None)
    command = line[-1].removeprefix("--command=")
    assert argument in ended_by(shlex.split(command))
    shell = f"python() {{ printf '%s\\0' \"$@\"; }}\n{command}"
    found = subprocess.run(
        ["bash", "-c", shell], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert ended_by(found.stdout.split("\0")[:-1]) == HOSTILE
    assert list(tmp_path.iterdir()) == []

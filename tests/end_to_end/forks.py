"""Commands run in a fraction of a second each, in forks of a process that has everything imported.

Usage:
  with forked_commands(folder) as run:
    status, output = run("shortcut_tpu.report", ["--workdir=w"])
    status, output = run("shortcut_tpu.report", ["--workdir=w"], parse_only=True)
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import json
from pathlib import Path
import subprocess
import sys

from launch.local_pod import host_environment

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def forked_commands(folder: Path) -> Iterator[Callable[..., tuple[int, str]]]:
    """Gives a function that runs `python -m MODULE ARGUMENTS` in a folder."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.end_to_end.forked_commands"],
        cwd=folder,
        # Programs are compiled for one or two calls: most optimizations would not pay.
        env=host_environment(chips_per_host=1)
        | {"PYTHONPATH": str(ROOT), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin and process.stdout

        def run(module: str, arguments: Sequence[str], parse_only: bool = False) -> tuple[int, str]:
            process.stdin.write(json.dumps([module, list(arguments), parse_only]) + "\n")
            process.stdin.flush()
            status, output = json.loads(process.stdout.readline())
            return status, output

        yield run
        process.stdin.close()

"""Measures what the bars of this project are about, each as a ratio of two things in one run.

  python -m tests.benchmarks.run                                # all but those that need a file
  python -m tests.benchmarks.run --only=loader,sampler --rounds=9 --json=figures.json
  python -m tests.benchmarks.run --official=../shortcut-models --autoencoder=taef2:WEIGHTS
  python -m tests.benchmarks.run --official=../shortcut-models --only=official \\
      --config=imagenet256_b                                    # on an accelerator

Takes minutes; nothing else should run beside it. All but `official` are made for a processor: what
a config costs on an accelerator is measured by `python -m shortcut_tpu.measure`. Exits 1 where a
ratio is not within its bar.
"""

import importlib
import os
from pathlib import Path
import sys
import tempfile
import time
from types import ModuleType

from absl import flags

from data_pipeline.errors import UserError
from launch.local_pod import host_environment
from shortcut_tpu.cli import command
from tests.benchmarks.comparison import Comparison, Options, Skipped, table

# The `official` ones come last, for modules of the clone have names like `model` and `utils`.
NAMES = (
    "objective",
    "loader",
    "data_at_size",
    "input_wait",
    "checkpoint",
    "sampler",
    "devices",
    "compile_time",
    "estimates",
    "encode",
    "official",
    "official_pod",
)


def load(name: str) -> ModuleType:
    """The module of a benchmark; its `measure` takes Options and returns Comparisons."""
    return importlib.import_module(f"tests.benchmarks.{name}")


def define_flags() -> None:
    command.define_config()
    flags.DEFINE_list("only", list(NAMES), f"Of {', '.join(NAMES)}.")
    flags.DEFINE_integer("rounds", 5, "How often each of two things is measured.", 1)
    flags.DEFINE_string("official", None, "A clone of github.com/kvfrans/shortcut-models.")
    flags.DEFINE_string("autoencoder", None, "NAME or NAME:WEIGHTS, for encode.")
    command.define_json()


def options(folder: Path) -> Options:
    """What the flags say, with a folder for files.

    Raises:
      UserError: --official names no clone.
    """
    values = flags.FLAGS
    clone = Path(values.official) if values.official else None
    if clone is not None and not (clone / "targets_shortcut.py").is_file():
        raise UserError(f"--official={clone}: not a clone of github.com/kvfrans/shortcut-models")
    return Options(folder, values.rounds, clone, values.autoencoder, values.config)


def main() -> None:
    names = flags.FLAGS.only
    if unknown := sorted({*names} - {*NAMES}):
        raise UserError(f"--only={','.join(unknown)}: there are {', '.join(NAMES)}")
    found: dict[str, list[Comparison]] = {}
    skipped: dict[str, str] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as top:
        for number, name in enumerate(names, 1):
            folder = Path(top) / name
            folder.mkdir()
            started = time.monotonic()
            try:
                found[name] = load(name).measure(options(folder))
                result = ", ".join(f"{row.ratio:.3f}" for row in found[name])
            except Skipped as reason:
                skipped[name] = str(reason)
                result = "skipped"
            took = f"{time.monotonic() - started:.0f} s"
            print(f"{number}/{len(names)} {name}: {result} ({took})", file=sys.stderr, flush=True)
    rows = [comparison for comparisons in found.values() for comparison in comparisons]
    if rows:
        print(table(rows))
    for name, why in skipped.items():
        print(f"skipped {name}: {why}")
    figures = {name: [row.figures() for row in comparisons] for name, comparisons in found.items()}
    command.write_json({"benchmarks": figures, "skipped": skipped})
    if not all(row.holds for row in rows):
        sys.exit(1)


def with_environment() -> None:
    """Starts this process again, if need be, with the environment that a rehearsed host has.

    JAX reads it when it is imported, and the allocator before that. A config is for the devices
    that there are.
    """
    if any(argument.startswith("--config=") for argument in sys.argv):
        return
    environment = host_environment(1)
    if environment != os.environ:
        arguments = [sys.executable, "-m", "tests.benchmarks.run", *sys.argv[1:]]
        os.execve(sys.executable, arguments, environment)


if __name__ == "__main__":
    with_environment()
    command.run(main, define_flags)

"""Writes one or several runs as one self-contained HTML file.

  python -m shortcut_tpu.report --workdir=runs/digits
  python -m shortcut_tpu.report --workdir=runs/a --workdir=runs/b --output=a_and_b.html

The page has distances over sampling steps and while training, sheets of samples, curves,
environments, goodput, and the configs with the keys in which the runs differ. It is made from the
run's event files. Without --output it is written to report.html in the workdir.
"""

from collections.abc import Sequence

from absl import flags
from etils import epath

from data_pipeline.atomic_files import write_output
from data_pipeline.errors import UserError
from shortcut_tpu.cli import command
from shortcut_tpu.cli.console import say
from shortcut_tpu.observability.page import page
from shortcut_tpu.observability.summary import read_summary


def define_flags() -> None:
    flags.DEFINE_multi_string("workdir", None, "Folder of a run; may be given several times.")
    flags.DEFINE_string("output", None, "HTML file to write; report.html in the first workdir.")


def names(workdirs: Sequence[epath.Path]) -> list[str]:
    """Short names that tell the folders apart."""
    for parts in range(1, 10):
        short = ["/".join(path.parts[-parts:]) for path in workdirs]
        if len(set(short)) == len(short):
            return short
    raise UserError(f"--workdir={workdirs[0]} is given twice")


def main() -> None:
    given = [epath.Path(path) for path in command.required("workdir", "the folder of a run")]
    workdirs = [path.resolve() for path in given]
    output = epath.Path(flags.FLAGS.output or workdirs[0] / "report.html")
    command.require_places()
    runs = [
        read_summary(name, workdir) for name, workdir in zip(names(workdirs), workdirs, strict=True)
    ]
    write_output(output, page(runs).encode())
    say(f"report: {output}")


if __name__ == "__main__":
    command.run(main, define_flags)

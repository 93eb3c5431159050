"""The commands that the documentation shows, as a shell and absl would see them.

Usage:
  for command in documented():
    command.where      # "README.md"
    command.text       # "python -m shortcut_tpu.sample --workdir=DIR [--steps=1,4]"
    command.module     # "shortcut_tpu.sample"; "" where it is no command of this project
    command.arguments  # ["--workdir=DIR", "--steps=1,4"]
    command.inner      # the command that it is given after --, or None
"""

import ast
from collections.abc import Iterator
import dataclasses
from pathlib import Path
import re
import shlex
import tomllib

from launch.jobs import JOBS

ROOT = Path(__file__).parents[2]
PAGES = (
    "README.md",
    "WORKSPACE.md",
    *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md")),
)
ROOMS = ("configs", "data_pipeline", "launch", "shortcut_tpu")

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`]+)`")
_COMMAND = re.compile(
    r"(?:\$ )?("
    r"(?:python -m [a-z_]+\.\w+(?= |$)|shortcut-[a-z-]+|(?:\./)?(?:launch|tests)/\w+\.sh|\.ci/run)"
    r"(?: .*)?"
    r"|(?:npm|pip|docker|gcloud) .+"
    r")"
)
# The modules that `python -m` runs, by their short names.
COMMANDS = {
    path.stem: f"{room}.{path.stem}"
    for room in ROOMS
    for path in (ROOT / room).glob("*.py")
    if '\nif __name__ == "__main__":' in path.read_text()
} | {"gke": "launch.gke"}
_ANY_CONFIG = re.compile(r"--config=(?:\.\.\.|NAME|NAME_or_PATH|CONFIG)")


@dataclasses.dataclass(frozen=True)
class Command:
    """A command as it is written in `where`."""

    where: str
    text: str

    @property
    def words(self) -> list[str]:
        """The words of the shell; what is optional is there, what only stands for more is not."""
        # What it is piped into, or whereto, is no concern of the command's.
        text = re.split(r" [|>] ", self.text)[0].replace("[", "").replace("]", "")
        return [word for word in shlex.split(text, comments=True) if word != "..."]

    @property
    def module(self) -> str:
        """What `python -m` runs."""
        first, *rest = self.words
        if first == "python":
            return rest[1]
        if first.startswith("shortcut-"):
            scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
            return COMMANDS[scripts[first].partition(":")[2]]
        name = Path(first).stem
        return f"launch.{name}" if first.endswith(f"launch/{name}.sh") and name in COMMANDS else ""

    @property
    def arguments(self) -> list[str]:
        """What follows, with a config where any would do, and the flags of a remark behind it."""
        arguments = self.words[3 if self.words[0] == "python" else 1 :]
        arguments += re.findall(r"--\w+", self.text.partition(" #")[2])
        if "--" in arguments:
            del arguments[arguments.index("--") :]
        return [
            "--config=digits" if _ANY_CONFIG.fullmatch(argument) else argument
            for argument in arguments
            if not argument.startswith("--config.KEY=")
        ]

    @property
    def inner(self) -> "Command | None":
        """What it runs with the arguments after --: Python's, or those of a launcher's job."""
        _, dashes, after = self.text.partition(" -- ")
        if not dashes:
            return None
        job = re.search(r"--job=(\w+)", self.text)
        python = f"python -m {JOBS[job[1]].module}" if job else "python"
        return Command(self.where, f"{python} {after}")


def documented() -> list[Command]:
    """All commands of the pages, of the configs' docstrings and of the commands' --help."""
    commands = [Command(page, text) for page in PAGES for text in in_page(read(page))]
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
            where = str(path.relative_to(ROOT))
            commands += [Command(where, text) for text in in_lines(docstring)]
    return commands


def read(page: str) -> str:
    """The text of a page."""
    return (ROOT / page).read_text()


def fences(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return [block for kind, block in _FENCE.findall(text) if kind == language]


def spans(text: str) -> list[str]:
    """What stands between backticks, outside fenced blocks, each on one line."""
    return [" ".join(span.split()) for span in _SPAN.findall(_FENCE.sub("", text))]


def section(text: str, title: str) -> str:
    """A section of a page, up to the next one."""
    return re.split(r"^##? ", text.split(f"## {title}\n")[1], flags=re.MULTILINE)[0]


def in_page(text: str) -> Iterator[str]:
    """The commands of a page of Markdown."""
    for block in fences(text, "sh"):
        yield from in_lines(block)
    for span in spans(text):
        name, _, rest = span.partition(" ")
        if name in COMMANDS and rest.startswith("--"):
            yield f"python -m {COMMANDS[name]} {rest}"
        elif found := _COMMAND.fullmatch(span):
            yield found[1]


def in_lines(text: str) -> Iterator[str]:
    """The commands that lines begin with, those that go on over a backslash made whole."""
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if found := _COMMAND.match(line.strip()):
            yield found[1]

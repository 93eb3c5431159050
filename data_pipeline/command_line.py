"""Parses flags: help on one screen, mistakes in one line.

A flag that is given twice is refused, for the last one would win in silence: a shell makes several
of --source=train-{00..12}.tar where it is not quoted. A path may begin with ~ wherever it stands,
as in --output=~/DIR or --source=imagefolder:~/DIR, which shells leave alone.

Usage:
    app.run(exit_on_user_error(main), flags_parser=exit_on_user_error(parse_flags))

    output = required("output", "the folder for the records")
"""

from collections.abc import Iterator, Sequence
import contextlib
import importlib.metadata
import os
import re
import sys
import textwrap
from typing import Any

from absl import flags, logging

from data_pipeline import chips
from data_pipeline.errors import UserError

# Other packages have flags too, which are no one's concern here.
_OURS = ("data_pipeline", "shortcut_tpu", "launch")
_WIDTH = 100
_HOME = re.compile(r"((?:--?[\w.]+=)?(?:[\w.-]+:)?)(~[^/,:]*)(/.*)?")
_OVERRIDE = "config."
# The title under which --help has a flag, by the flag's name.
_groups: dict[str, str] = {}


def parse_flags(arguments: Sequence[str]) -> list[str]:
    """Parses a command's flags; --help prints what it does and its flags, --version the version.

    Args:
        arguments: the command line, the program first.

    Returns:
        The program and what is no flag.

    Raises:
        UserError: a flag is unknown, given twice, or its value is not of its type.
    """
    if {"--help", "-help", "-h"} & set(arguments):
        print((sys.modules["__main__"].__doc__ or "").strip(), "", *_flag_lines(), sep="\n")
        sys.exit(0)
    if "--version" in arguments:
        print("shortcut_tpu", importlib.metadata.version("shortcut_tpu"))
        sys.exit(0)
    try:
        arguments = flags.FLAGS.read_flags_from_files(list(arguments), force_gnu=False)
        arguments = [expand_home(argument) for argument in arguments]
        _refuse_repeated(arguments)
        return flags.FLAGS(arguments)
    except flags.Error as error:
        raise UserError(str(error)) from None


def quiet_libraries() -> None:
    """Leaves the console to this command's own lines, and to others' warnings and errors.

    Orbax, CLU and JAX log all they do, libtpu what it misses on a machine without TPUs.
    """
    logging.set_verbosity(logging.WARNING)
    chips.quiet_without_any()


def expand_home(text: str) -> str:
    """PATH, KIND:PATH, --flag=PATH or --flag=KIND:PATH with a leading ~ or ~user replaced.

    Raises:
        UserError: there is no such user, and a folder of that name is not what was meant.
    """
    found = _HOME.fullmatch(text)
    if found is None:
        return text
    before, home, rest = found.groups(default="")
    expanded = os.path.expanduser(home)
    if expanded == home:
        if home != "~" and not rest:
            return text  # A name that begins so.
        raise UserError(f"{text}: there is no home folder {home}")
    return before + expanded + rest


def refuse_twice(given: dict[str, str], name: str, value: str) -> None:
    """Notes a flag's value in `given`.

    Raises:
        UserError: it has one already.
    """
    if name in given:
        raise UserError(
            f"--{name} is given twice, {given[name] or 'plain'} and {value or 'plain'}; only the"
            " last would count. Braces that are not quoted become several flags: '--FLAG={00..12}'"
        )
    given[name] = value


def _refuse_repeated(arguments: Sequence[str]) -> None:
    given: dict[str, str] = {}
    rest = iter(arguments[1:])
    for argument in rest:
        if argument == "--" or not argument.startswith("-"):
            return  # What follows is no flag.
        name, equals, value = argument.lstrip("-").partition("=")
        if name.startswith(_OVERRIDE):
            refuse_twice(given, name, value)
            continue
        if name not in flags.FLAGS and name.removeprefix("no") in flags.FLAGS:
            name, value = name.removeprefix("no"), "false"
        if name not in flags.FLAGS:
            continue  # Whoever parses it says so.
        flag = flags.FLAGS[name]
        if not equals and not flag.boolean:
            value = next(rest, "")
        if not isinstance(flag, flags.MultiFlag):
            refuse_twice(given, name, value)


@contextlib.contextmanager
def flag_group(title: str) -> Iterator[None]:
    """Flags that are defined in the block stand under this title in --help."""
    before = set(flags.FLAGS)
    yield
    _groups.update(dict.fromkeys(set(flags.FLAGS) - before, title))


def _flag_lines() -> Iterator[str]:
    """The flags, one a line: name, default and meaning; those of a group under its title."""
    modules = flags.FLAGS.flags_by_module_dict()
    shown = [
        flag
        for module, defined in modules.items()
        if module.split(".")[0] in _OURS or module == sys.argv[0]
        for flag in defined
    ]
    indent = max(len(_with_default(flag)) for flag in shown) + 4
    titles = [_groups.get(flag.name, "") for flag in shown]
    for title in dict.fromkeys(["", *titles]):
        if title:
            yield f"\n{title}:"
        for flag, own in zip(shown, titles, strict=True):
            if own == title:
                line = f"{f'  {_with_default(flag)}':{indent}}{flag.help}"
                yield textwrap.fill(line, _WIDTH, subsequent_indent=" " * indent)
    yield "\n--helpfull also has the flags of absl, on logging and debugging."


def _with_default(flag: Any) -> str:
    if flag.boolean:
        return f"--{'[no]' if flag.default else ''}{flag.name}"
    return f"--{flag.name}" + (f"={flag.default}" if flag.default not in (None, "") else "")


def required(name: str, meaning: str) -> str:
    """The value of a flag that must be given.

    Raises:
        UserError: it was not.
    """
    value = flags.FLAGS[name].value
    if not value:
        raise UserError(f"--{name} is missing: {meaning}")
    return value

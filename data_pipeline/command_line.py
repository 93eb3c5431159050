"""What every command does with its flags: help on one screen, mistakes in one line.

Usage:
    app.run(exit_on_user_error(main), flags_parser=exit_on_user_error(parse_flags))

    output = required("output", "the folder for the records")
"""

from collections.abc import Iterator, Sequence
import sys
import textwrap
from typing import Any

from absl import flags

from data_pipeline.errors import UserError

# Other packages have flags too, which are no one's concern here.
_OURS = ("data_pipeline", "shortcut_tpu", "launch")
_WIDTH = 100


def parse_flags(arguments: Sequence[str]) -> list[str]:
    """Parses the flags of a command; --help prints what it does and its flags, and ends it.

    Args:
        arguments: the command line, the program first.

    Returns:
        The program and what is no flag.

    Raises:
        UserError: a flag is unknown or its value is not of its type.
    """
    if {"--help", "-help", "-h"} & set(arguments):
        print((sys.modules["__main__"].__doc__ or "").strip(), "", *_flag_lines(), sep="\n")
        sys.exit(0)
    try:
        return flags.FLAGS(arguments)
    except flags.Error as error:
        raise UserError(str(error)) from None


def _flag_lines() -> Iterator[str]:
    """The flags, one a line: name, default and meaning."""
    modules = flags.FLAGS.flags_by_module_dict()
    shown = {
        _with_default(flag): flag.help
        for module, defined in modules.items()
        if module.split(".")[0] in _OURS or module == sys.argv[0]
        for flag in defined
    }
    indent = max(map(len, shown)) + 4
    for name, meaning in shown.items():
        yield textwrap.fill(
            f"{f'  {name}':{indent}}{meaning}", _WIDTH, subsequent_indent=" " * indent
        )


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

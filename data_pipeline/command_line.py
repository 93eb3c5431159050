"""What every command does with its flags: help on one screen, mistakes in one line.

Usage:
    app.run(exit_on_user_error(main), flags_parser=exit_on_user_error(parse_flags))

    output = required("output", "the folder for the records")
"""

from collections.abc import Sequence
import sys

from absl import app, flags

from data_pipeline.errors import UserError


def parse_flags(arguments: Sequence[str]) -> list[str]:
    """Parses the flags of a command; --help prints only its own, and ends it.

    Args:
        arguments: the command line, the program first.

    Returns:
        The program and what is no flag.

    Raises:
        UserError: a flag is unknown or its value is not of its type.
    """
    if {"--help", "-help", "-h"} & set(arguments):
        app.usage(shorthelp=True, writeto_stdout=True)
        sys.exit(0)
    try:
        return flags.FLAGS(arguments)
    except flags.Error as error:
        raise UserError(str(error)) from None


def required(name: str, meaning: str) -> str:
    """The value of a flag that must be given.

    Raises:
        UserError: it was not.
    """
    value = flags.FLAGS[name].value
    if not value:
        raise UserError(f"--{name} is missing: {meaning}")
    return value

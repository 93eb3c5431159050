"""Errors that the user of a command can cause, and how a command reports them.

A supervisor, if there is one, is told that starting again is of no use.

Usage:
    raise UserError(f"{path}: no such file")

    if __name__ == "__main__":
        app.run(exit_on_user_error(main))
"""

from collections.abc import Callable
import functools
import sys
from typing import ParamSpec, TypeVar

from data_pipeline import outcome

P = ParamSpec("P")
R = TypeVar("R")


class UserError(Exception):
    """An error the user can cause and mend: a missing file, a wrong value, a truncated shard.

    The message is one line, names the file or the flag at fault and, where it can, the remedy.
    """


def _ends_in_a_line() -> tuple[type[Exception], ...]:
    """User errors, and what TensorFlow, if it was imported for a bucket, raises if that refuses."""
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is None:
        return (UserError,)
    refusals = (tensorflow.errors.PermissionDeniedError, tensorflow.errors.UnauthenticatedError)
    return (UserError, *refusals)


def exit_on_user_error(main: Callable[P, R]) -> Callable[P, R]:
    """Wraps a command's main so that user errors end in one line and no traceback.

    Args:
        main: any function; its arguments and its result pass through.

    Returns:
        A function that prints `error: MESSAGE` on stderr and exits with status 1 where `main`
        raises a UserError or a bucket refuses, and exits with status 130 on Ctrl-C. Other
        exceptions pass through.
    """

    @functools.wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return main(*args, **kwargs)
        except _ends_in_a_line() as error:
            outcome.report(outcome.REFUSED)
            print("error:", " ".join(str(error).splitlines()), file=sys.stderr)
            sys.exit(1)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)

    return wrapped

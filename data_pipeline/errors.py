"""Errors that a user can cause, and how commands report them.

A supervisor, if there is one, is told that starting again is of no use.

Usage:
    raise UserError(f"{path}: no such file")

    if __name__ == "__main__":
        app.run(exit_on_user_error(main), flags_parser=exit_on_user_error(parse_flags))
"""

from collections.abc import Callable
import functools
import os
import sys
import traceback
from typing import ParamSpec, TypeVar

from data_pipeline import exit_reason

P = ParamSpec("P")
R = TypeVar("R")


class UserError(Exception):
    """An error the user can cause and mend: a missing file, a wrong value, a truncated shard.

    The message is one line, names the file or the flag at fault and, where it can, the remedy.
    """


class PassingError(UserError):
    """One that may pass by itself, such as chips in use: a supervisor starts the command again."""


def line_of(error: Exception) -> str | None:
    """The line that an error ends in; None for one that is no user's, and keeps its traceback.

    User errors have one, what TensorFlow, if it was imported for a bucket, raises if that refuses,
    what the system cannot do, such as write to a full disk, and libtpu's word for chips that
    another process has.
    """
    if isinstance(error, _ends_in_a_line()):
        return " ".join(str(error).splitlines())
    from data_pipeline import chips, system_errors  # They raise errors of this file.

    if line := system_errors.uncaught_line(error):
        return " ".join(line.splitlines())
    return chips.taken_line(str(error)) if isinstance(error, RuntimeError) else None


def report_failure(error: Exception) -> bool:
    """Prints the line of an error, if it has one, and tells the supervisor whether to try again.

    Returns:
        Whether it had one.
    """
    line = line_of(error)
    if line is None:
        return False
    if isinstance(error, _ends_in_a_line()) and not isinstance(error, PassingError):
        exit_reason.report(exit_reason.REFUSED)
    print("error:", line, file=sys.stderr, flush=True)
    return True


def has_peers() -> bool:
    """Whether other processes run the same program."""
    jax = sys.modules.get("jax")  # Slow to import, and who has not has none.
    if not jax or not jax.distributed.is_initialized():
        return False
    try:
        return jax.process_count() > 1
    except RuntimeError:
        return True  # It has no devices, so it cannot say.


def _ends_in_a_line() -> tuple[type[Exception], ...]:
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
        raises an error that has a line (`line_of`), and exits with status 130 on Ctrl-C. Other
        exceptions pass through, unless there are peers: then the process ends at once.
    """

    @functools.wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return main(*args, **kwargs)
        except Exception as error:
            told = report_failure(error)
            if has_peers():
                # An orderly end would wait for the peers, and they wait for this process.
                if not told:
                    traceback.print_exception(error)
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(1)
            if told:
                sys.exit(1)
            raise
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)

    return wrapped

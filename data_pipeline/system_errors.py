"""Tells the system's own failures apart from damaged files.

Too many open files, a failing disk or a lost network share are named as themselves, whoever meets
them: a reader that would otherwise speak of damage asks here first. Those that may pass are tried
again by a supervisor.

Usage:
    except OSError as error:
        raise unreadable(path, error) from None
    except RuntimeError as error:      # of a library that puts the system's words into its own
        raise_if_system(path, error)
        raise UserError(f"{path}: damaged: {error}")
"""

import errno
import os
import sys

from data_pipeline.errors import PassingError, UserError

_PASSING = {
    errno.EMFILE: "raise the limit with ulimit -n",
    errno.ENFILE: "all processes together have too many; see fs.file-max",
    errno.ENOMEM: "free memory, or take fewer --workers",
    errno.EIO: "the disk or its connection fails; what was to be read may be sound",
    errno.ESTALE: "a network disk has lost the file for a moment",
    errno.ETIMEDOUT: "the disk or the network does not answer",
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "this user's share of the disk is full",
}
_LASTING = {
    errno.EACCES: "this user may not use it",
    errno.EROFS: "nothing can be written there",
}
_ADVICE = _PASSING | _LASTING


def reason(error: BaseException) -> str:
    """An error as one short line, without the path that the message around it names already."""
    number = _number(error) or 0
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if number in _ADVICE:
        text = os.strerror(number)
    advice = _ADVICE.get(number)
    return " ".join(str(text).split())[:200] + (f"; {advice}" if advice else "")


def kind_of(error: BaseException) -> type[UserError]:
    """Whether the system's failure may pass by itself, so that a supervisor tries again."""
    return PassingError if _number(error) in _PASSING else UserError


def unreadable(path: str | os.PathLike[str], error: BaseException) -> UserError:
    """The error of a command for a path that the system cannot read."""
    return kind_of(error)(f"{os.fspath(path)}: cannot be read: {reason(error)}")


def raise_if_system(path: str | os.PathLike[str], error: BaseException) -> None:
    """Returns where an error may be a verdict on what was read.

    Raises:
        UserError: it is the system's, or has its words.
    """
    if _number(error) is not None:
        raise unreadable(path, error) from None


def uncaught_line(error: BaseException) -> str | None:
    """What a command says of a failure of the system that nothing in it expected; None for others.

    A disk can fill, or its rights change, at any write of a run.
    """
    tensorflow = sys.modules.get("tensorflow")
    kinds = (OSError, tensorflow.errors.OpError) if tensorflow else (OSError,)
    if not isinstance(error, kinds) or _number(error) not in _ADVICE:
        return None
    path = getattr(error, "filename", None)
    return f"{os.fsdecode(path)}: {reason(error)}" if path else reason(error)


def _number(error: BaseException) -> int | None:
    """The errno of an error, its own or that of the words in it."""
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    words = str(error).lower()
    return next((number for number in _ADVICE if os.strerror(number).lower() in words), None)

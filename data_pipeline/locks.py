"""Locks on files, released when a process ends; and file systems that have none.

Lustre without `flock`, NFS without its lock daemon and some FUSE mounts have none.

Usage:
    if not locks.take(file.fileno()):
        ...    # nobody is kept out here
"""

import errno
import fcntl

_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}


def take(file: int, *, wait: bool = False) -> bool:
    """Locks an open file until it is closed.

    Args:
        file: its descriptor, open for writing.
        wait: whether to wait for another that has it.

    Returns:
        Whether it is locked; False where the file system has no locks.

    Raises:
        BlockingIOError: another process has it.
        OSError: the file system fails otherwise.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise
    return True

"""Locks between processes, also on file systems that have none."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import BaseFileLock

_HELD = (errno.EACCES, errno.EAGAIN)


def has_locks(folder: Path) -> bool:
    """Whether the file system of a folder that is there has flock(2): some network file systems lack it.
    Raises OSError where nothing can be written there."""
    if os.name != "posix":
        return True
    import fcntl

    with tempfile.TemporaryFile(dir=folder) as probe:
        try:
            fcntl.flock(probe.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno in _HELD
    return True


def file_lock(path: Path) -> BaseFileLock:
    """A lock on ``path``: the system's, which ends with its process; where there is none, a file that is
    there while it is held. Raises OSError."""
    import filelock

    if has_locks(path.parent):
        return filelock.FileLock(path, mode=0o664)
    # Under another name: a file that the system's lock has left behind would look like one that is held.
    return filelock.SoftFileLock(path.with_name(f"{path.name}-file"))


def is_file(lock: BaseFileLock) -> bool:
    """Whether a lock is such a file, which outlives a process that is killed."""
    import filelock

    return isinstance(lock, filelock.SoftFileLock)

"""Private working folders in the temporary folder, and the removal of those that killed runs left there."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_PREFIX = "ggq-"
_HOLDER = ".held"
# A folder without a holder is just being made, or was left by a run that ended in that moment.
_YOUNG_S = 24 * 3600
_ATTEMPTS = 20


@contextlib.contextmanager
def folder(kind: str) -> Iterator[Path]:
    """A fresh folder of this process that nobody else can write to; gone when the block ends.

    ``kind``: a word for its name. Left-overs of runs that were killed are removed first. Raises OSError.
    """
    sweep()
    made, held = _make(kind)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        if held is not None:
            held.close()


def sweep(parent: Path | None = None) -> None:
    """Remove the folders of runs that have ended: never those of a living one, or of another user."""
    with contextlib.suppress(OSError):
        for left in (parent or Path(tempfile.gettempdir())).glob(f"{_PREFIX}*-*"):
            with contextlib.suppress(OSError):
                _remove_if_left(left)


def _make(kind: str) -> tuple[Path, IO[bytes] | None]:
    for _ in range(_ATTEMPTS):
        made = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{kind}-"))
        try:
            held = (made / _HOLDER).open("wb")
        except FileNotFoundError:  # swept away in the moment before it was held
            continue
        taken = _lock(held)
        if taken is None:
            held.close()
            return made, None
        if taken and (made / _HOLDER).exists():
            return made, held
        held.close()
    raise FileExistsError("no temporary folder could be held")


def _remove_if_left(left: Path) -> None:
    status = left.lstat()
    if not stat.S_ISDIR(status.st_mode) or (hasattr(os, "getuid") and status.st_uid != os.getuid()):
        return
    try:
        held = (left / _HOLDER).open("r+b")
    except FileNotFoundError:
        if time.time() - status.st_mtime > _YOUNG_S:
            shutil.rmtree(left, ignore_errors=True)
        return
    with held:
        if _lock(held):
            shutil.rmtree(left, ignore_errors=True)


def _lock(stream: IO[bytes]) -> bool | None:
    """Take a file for this process, for as long as it is open; None where this system has no such locks.

    The kernel gives it back however the process ends. It is not inherited by children.
    """
    try:
        import fcntl
    except ImportError:
        return None
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return None
    return True

"""Any exception as words: what a system, a library or a limit said, and what to do about it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from ggq.errors import DiskFull, GgqError, OutputProblem

_AGAIN = "then run the same command again"
# What the system's own word for an error does not tell: the cause, and what to do.
_WORDS: dict[int, tuple[str, str]] = {
    errno.EACCES: ("this user may not read or write it", "Look at its owner and its permissions (`ls -l`)"),
    errno.EPERM: ("the system does not allow it", "Look at its owner and its permissions (`ls -l`)"),
    errno.EROFS: ("its file system is read-only", "Choose a folder that can be written to"),
    errno.ENOENT: ("it is not there, or not any more", "Check the path"),
    errno.ENOTDIR: ("a part of that path is not a folder", "Check the path"),
    errno.EISDIR: ("it is a folder, where a file was expected", "Check the path"),
    errno.EEXIST: ("it is there already", "Move it away"),
    errno.ENAMETOOLONG: ("the name is too long for its file system", "Choose shorter names"),
    errno.ELOOP: ("links that lead to each other never end", "Check the links (`ls -l`)"),
    errno.EFBIG: (
        "a file may not be as large there: by a limit (`ulimit -f`), or by its file system, as on FAT32",
        "Raise the limit, or choose another disk",
    ),
    errno.EMFILE: ("this process may not open more files", "Raise the limit (`ulimit -n 1024`)"),
    errno.ENFILE: ("the system has no room for more open files", "Close other programs"),
    errno.EIO: (
        "the device reports an error of input or output",
        "Look at what the system's log says of it (`dmesg`)",
    ),
    errno.ESTALE: ("its network file system has lost it", "Mount that again"),
    errno.ENXIO: ("it is a device, a pipe or a socket without another end", "Give a regular file"),
    errno.ENODEV: ("it cannot be mapped into memory, as a regular file can", "Give a regular file"),
    errno.EBUSY: ("something else holds it", "Wait until that has ended"),
    errno.ETXTBSY: ("it is a program that is running", "Wait until that has ended"),
}
_NO_MEMORY = "Close other programs, raise the limit (`ulimit -v`), or choose a smaller model."


def explain(error: Exception) -> GgqError:
    """Any exception as one that can be printed."""
    if isinstance(error, GgqError):
        return error
    if isinstance(error, OSError) and error.errno is not None:
        return _of_the_system(error)
    if isinstance(error, MemoryError):
        return GgqError("Memory ran out.", str(error), _NO_MEMORY)
    if isinstance(error, RecursionError):
        return GgqError(
            "Something in the input is nested too deep.",
            "No file of a model needs hundreds of levels.",
            "Look for a JSON file or a header with that many brackets, or choose another model.",
        )
    if isinstance(error, UnicodeError):
        return GgqError(
            "A text is not in the encoding that it should be in.",
            _first_line(error),
            "Save the file as UTF-8, or give it a name that is text.",
        )
    text = str(error)
    if isinstance(error, RuntimeError) and "can't start new thread" in text:
        return GgqError(
            "No more threads can be started.",
            "A limit on processes, or on memory, was met.",
            f"Raise it (`ulimit -u`, `ulimit -v`, the container's limit of pids), {_AGAIN}.",
        )
    if isinstance(error, RuntimeError) and "home directory" in text.lower():
        return GgqError(
            "This user has no home folder.",
            f"{_first_line(error)}.",
            "Set HOME to a folder that can be written to.",
        )
    return GgqError(
        f"ggq met something that it does not know: {type(error).__name__}.",
        text,
        "Run it again with GGQ_DEBUG=1 in the environment and report what it prints.",
    )


def _of_the_system(error: OSError) -> GgqError:
    number = error.errno or 0
    where = _shown(error.filename)
    said = error.strerror or os.strerror(number)
    if number in (errno.ENOSPC, errno.EDQUOT):
        full = "The disk is full" if number == errno.ENOSPC else "The disk quota is used up"
        return DiskFull(
            f"{full}: {where or 'what is written'} has no room.",
            "",
            f"Free some space, {_AGAIN}.",
        )
    if number == errno.ENOMEM:
        return GgqError("Memory ran out.", f"{where + ': ' if where else ''}{said}.", _NO_MEMORY)
    if number == errno.EAGAIN and isinstance(error, BlockingIOError) and not where:
        return GgqError(
            "No more processes can be started.",
            f"{said}: a limit on processes, or on memory, was met.",
            f"Raise it (`ulimit -u`, the container's limit of pids), {_AGAIN}.",
        )
    if number == errno.ENOENT and not where and _is_nowhere():
        return OutputProblem(
            "The current folder is not there any more.",
            "It was deleted, or moved, while this shell stood in it.",
            "Go to another folder (`cd`), then run the same command again.",
        )
    why, step = _WORDS.get(number, ("", "Fix that"))
    return OutputProblem(
        f"{where or 'A file or a stream'} cannot be used: {said}.",
        f"{why[:1].upper()}{why[1:]}." if why else "",
        f"{step}, {_AGAIN}.",
    )


def _is_nowhere() -> bool:
    try:
        Path.cwd()
    except OSError:
        return True
    return False


def _shown(name: object) -> str:
    if isinstance(name, bytes):
        return os.fsdecode(name)
    return str(name) if isinstance(name, (str, Path)) else ""


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__

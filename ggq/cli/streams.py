"""Standard streams that cannot make a job fail: closed, full, broken, in an encoding without a letter."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import sys
from typing import TYPE_CHECKING, TextIO, cast

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_INPUT, _OUTPUT, _ERRORS = range(3)


class _Descriptor(io.RawIOBase):
    """Standard output or standard error, unbuffered.

    A write that fails is the last one: what comes after it goes nowhere, so that neither the words about it
    nor Python's own flush at its end fail once more. ``told``: the first failure is raised (of results), else
    it is passed over (of remarks, for which no job is broken off).
    """

    def __init__(self, descriptor: int, *, told: bool) -> None:
        self._descriptor = descriptor
        self._told = told
        self._failed = False

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer, /) -> int:
        block = memoryview(data).cast("B")
        if self._failed:
            return len(block)
        try:
            return self._write(block)
        except OSError as error:
            self._failed = True
            if self._told:
                error.filename = "standard output"
                raise
            return len(block)

    def _write(self, block: memoryview) -> int:
        while True:
            try:
                return os.write(self._descriptor, block)
            except BlockingIOError:  # another program has set it so: a pipe's two ends share the flag
                select.select([], [self._descriptor], [])


def keep_open() -> None:
    """Let the null device take the place of standard streams that are closed.

    Else the next file that is opened gets their number, and what a library prints goes into it.
    """
    for number in (_INPUT, _OUTPUT, _ERRORS):
        try:
            os.fstat(number)
        except OSError as error:
            if error.errno == errno.EBADF:
                # It takes the lowest number that is free, which is this one.
                os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def install() -> None:
    """Put streams that hold the promise above in the place of Python's own."""
    keep_open()
    sys.stdin = sys.stdin or open(_INPUT, closefd=False, encoding="utf-8")  # noqa: SIM115
    sys.stdout = _stream(sys.stdout, _OUTPUT, told=True)
    sys.stderr = _stream(sys.stderr, _ERRORS, told=False)


def _stream(given: TextIO | None, number: int, *, told: bool) -> io.TextIOWrapper:
    with contextlib.suppress(OSError, ValueError):
        if given is not None:
            given.flush()
    strict = given is None or given.errors in (None, "strict")
    return io.TextIOWrapper(
        io.BufferedWriter(cast("io.RawIOBase", _Descriptor(number, told=told))),
        encoding=given.encoding if given is not None else "utf-8",
        # A letter that a terminal has not, and a byte of a file's name that is none, are shown as an escape.
        errors="backslashreplace" if strict else given.errors if given is not None else None,
        line_buffering=number == _ERRORS or os.isatty(number),
    )


def flush() -> None:
    """Send what is still held back. Raises OSError."""
    sys.stdout.flush()

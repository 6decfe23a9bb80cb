"""The pipes between a conversion's child process and its parent, and how the two agree to begin."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_PATIENCE_S, _LONG_PATIENCE_S = 0.005, 0.5


def are_there() -> bool:
    """Whether this system has such pipes."""
    return hasattr(os, "mkfifo")


@dataclass(frozen=True)
class Pipe:
    """A named pipe in ``folder`` for the base's tensors, and beside it a file that says with which of them to
    begin."""

    folder: Path

    @property
    def _path(self) -> Path:
        return self.folder / "pipe"

    @property
    def _first(self) -> Path:
        return self.folder / "first"

    def make(self) -> None:
        """Raises OSError."""
        os.mkfifo(self._path)

    def begin(self, first: str) -> int:
        """In the parent: ask for the data from a tensor on; returns the handle that they are read from, which
        does not block. Raises OSError."""
        # It is opened before the child is told, so that neither waits for the other.
        handle = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK)
        partial = self._first.with_suffix(".partial")
        partial.write_text(first, encoding="utf-8")
        partial.replace(self._first)
        return handle

    def wait(self) -> tuple[str, BinaryIO]:
        """In the child: the tensor to begin with, and the pipe, which has no buffer. Raises OSError."""
        parent = os.getppid()
        while not self._first.exists():
            if os.getppid() != parent:
                raise BrokenPipeError("ggq has ended")
            time.sleep(_PATIENCE_S)
        handle = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK)  # it fails where nobody reads
        os.set_blocking(handle, True)
        return self._first.read_text(encoding="utf-8"), os.fdopen(handle, "wb", buffering=0)


class ChildEnded(Exception):
    """Nobody is there to read what is written."""


@contextlib.contextmanager
def _child_ended() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EPIPE, errno.ENXIO, errno.ENOENT):
            raise ChildEnded from error
        raise


@dataclass(frozen=True)
class Feed:
    """A named pipe in ``folder`` the other way: weights of the checkpoint, as the child asks for them."""

    folder: Path

    @property
    def _path(self) -> Path:
        return self.folder / "weights"

    def make(self) -> None:
        """Raises OSError."""
        os.mkfifo(self._path)

    def to_child(self) -> int:
        """In the parent, when the child has asked: the handle to write to. Raises ChildEnded."""
        with _child_ended():
            handle = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK)  # it fails where nobody reads
        os.set_blocking(handle, True)
        return handle

    @staticmethod
    def write(handle: int, block: bytes) -> None:
        """In the parent: to the last byte. Raises ChildEnded."""
        data = memoryview(block)
        with _child_ended():
            while data:
                data = data[os.write(handle, data) :]

    def from_parent(self) -> Fed:
        """In the child, before it asks. Raises OSError."""
        return Fed(os.open(self._path, os.O_RDONLY | os.O_NONBLOCK))


class Fed:
    """The child's end of a ``Feed``."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._parent = os.getppid()

    def fill(self, room: memoryview) -> None:
        """Wait for as many bytes as there is room. Raises BrokenPipeError where the parent has ended."""
        while room:
            # Before anybody writes there is nothing to be read, not even an end.
            if select.select([self._handle], [], [], _LONG_PATIENCE_S)[0]:
                count = os.readv(self._handle, [room])
                if not count:
                    raise BrokenPipeError("the weights ended too early")
                room = room[count:]
            elif os.getppid() != self._parent:
                raise BrokenPipeError("ggq has ended")

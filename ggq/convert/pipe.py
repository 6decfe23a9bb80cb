"""The pipe that a conversion's child process hands tensors over through, and how the two agree to begin."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_PATIENCE_S = 0.005


def are_there() -> bool:
    """Whether this system has such pipes."""
    return hasattr(os, "mkfifo")


@dataclass(frozen=True)
class Pipe:
    """A named pipe in ``folder``, and beside it a file that says with which tensor its data are to begin."""

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

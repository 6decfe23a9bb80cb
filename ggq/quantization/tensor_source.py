"""Where the tensors of the one pass come from."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from ggq.errors import GgufProblem
from ggq.gguf.file import GgufFile
from ggq.gguf.header import TensorInfo


class Stream(Protocol):
    """Data to be read from front to back: an open file, the answer of an HTTP server."""

    def readinto(self, room: memoryview, /) -> int | None:
        """Fill ``room``, or as much of it as there is at once; returns the bytes, 0 at the end."""


class Source(Protocol):
    """A model to be quantized: the header of its base GGUF, and the data of its tensors from wherever."""

    @property
    def base(self) -> GgufFile:
        """The header. Its file may be without the tensors' data, but is else as llama-quantize needs it."""

    @property
    def identity(self) -> str:
        """What tells these data from others: a digest, as a rule."""

    @property
    def is_remote(self) -> bool:
        """Whether the data come from afar: a finished tensor is written down before the next is awaited."""

    def open(self, tensor: TensorInfo) -> AbstractContextManager[Stream]:
        """A tensor's data in its own type, little-endian, from the first row on; what comes after the last
        row is not read. One tensor is open at a time, in the order of the base. Raises GgqError, OSError."""


class BaseFile:
    """A base GGUF on the disk, in one file or in shards.

    It is read, not mapped: a disk that fails is then an error, and not the death of the process.
    """

    is_remote = False

    def __init__(self, base: GgufFile, identity: str | None = None) -> None:
        """``identity``: the file's digest, where it is known; else name, size and time of change stand in."""
        self.base = base
        self.identity = identity or " ".join(
            f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
            for path, stat in ((path, path.stat()) for path in base.paths)
        )

    def open(self, tensor: TensorInfo) -> AbstractContextManager[Stream]:
        return _Opened(tensor)


class _Opened:
    """A tensor's data in a file. Errors name that file: the engine's own are those of writing."""

    def __init__(self, tensor: TensorInfo) -> None:
        self._path = tensor.path
        try:
            # Without a buffer of Python's own: the engine reads large blocks.
            self._file = tensor.path.open("rb", buffering=0)
            self._file.seek(tensor.offset_bytes)
        except OSError as error:
            raise _unreadable(self._path, error) from error

    def __enter__(self) -> _Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def readinto(self, room: memoryview, /) -> int | None:
        try:
            return self._file.readinto(room)
        except OSError as error:
            raise _unreadable(self._path, error) from error


def _unreadable(path: Path, error: OSError) -> GgufProblem:
    return GgufProblem(
        f"{path} cannot be read.", f"{error.strerror or error}.", "Check the file and the disk that it is on."
    )

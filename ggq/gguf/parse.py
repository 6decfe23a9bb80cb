"""The header of a GGUF file, read and checked as untrusted input.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. What is accepted here is what
llama.cpp's own loader accepts (ggml/src/gguf.cpp), with bounds on what a header may hold.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

from ggq.errors import GgufProblem
from ggq.gguf import tensor_types
from ggq.gguf.header import (
    ARRAY,
    DEFAULT_ALIGNMENT,
    SCALARS,
    STRING,
    Array,
    GgufFile,
    Scalar,
    TensorInfo,
    padded,
)
from ggq.system.untrusted import shown

MAGIC = b"GGUF"

# Bounds on what a header may claim, well above any model there is: the largest vocabularies make headers of
# some 15 MB, the largest mixtures of experts some 70,000 tensors before their experts are stacked.
_HEADER_LIMIT_BYTES = 64 << 20
_BLOCK_BYTES = 256 << 10
_KEY_LIMIT_BYTES = 65_535
_ENTRY_LIMIT = 65_536
_TENSOR_LIMIT = 262_144
_DIMENSION_LIMIT = 4  # GGML_MAX_DIMS
_NAME_LIMIT_BYTES = 63  # GGML_MAX_NAME - 1

_LENGTH = struct.Struct("<Q")


def parse(path: Path, stream: IO[bytes]) -> GgufFile:
    """Read the header of an open file; its data are only checked to be there. Raises GgufProblem, OSError."""
    return _Reader(path, stream).read()


class _Reader:
    """Reads a header from front to back. No length is believed before it is compared with the file."""

    def __init__(self, path: Path, stream: IO[bytes]) -> None:
        self._path = path
        self._stream = stream
        self._file_bytes = stream.seek(0, 2)
        self._position = stream.seek(0)
        self._buffer = bytearray()  # the file from its start, as far as it was needed

    def read(self) -> GgufFile:
        version = self._version()
        tensor_count = self._count("tensors", _TENSOR_LIMIT)
        entry_count = self._count("metadata entries", _ENTRY_LIMIT)
        metadata: dict[str, Scalar | Array] = {}
        entry_bytes: dict[str, int] = {}
        entry_spans: dict[str, tuple[int, int]] = {}
        for _ in range(entry_count):
            start = self._position
            key = self._name("metadata key", _KEY_LIMIT_BYTES)
            if not key or key in metadata:
                self._lie(f"The key {key[:80]!r} is there twice." if key else "A metadata key is empty.")
            value, lost = self._value(key[:80])
            metadata[key] = value
            entry_bytes[key] = self._position - start - lost
            entry_spans[key] = (start, self._position)
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
            self._lie(f"general.alignment is {alignment!r}, not a power of two.")
        infos = [self._tensor() for _ in range(tensor_count)]
        header_bytes = self._position
        data_offset = padded(header_bytes, alignment) if infos else header_bytes
        return GgufFile(
            paths=(self._path,),
            version=version,
            metadata=metadata,
            entry_bytes=entry_bytes,
            entry_spans=entry_spans,
            tensors=tuple(self._placed(infos, data_offset, alignment)),
            alignment=alignment,
            header_bytes=header_bytes,
            data_offset=data_offset,
            file_bytes=self._file_bytes,
        )

    def _version(self) -> int:
        magic = self._take(min(4, self._file_bytes), "its first bytes")
        if magic != MAGIC:
            raise GgufProblem(
                f"{self._path} is not a GGUF file.",
                "It is empty." if not magic else f"It begins with {magic!r} instead of {MAGIC!r}.",
                "Convert a checkpoint with `ggq convert`, or download the file again.",
            )
        version = int(self._number("I"))
        if version & 0xFFFF == 0 and version:
            self._unsupported("It was written for big-endian machines", "Get it in little-endian form.")
        if version < 2:
            self._unsupported(f"It is of GGUF version {version}, from 2023", "Convert the model again.")
        if version > 3:
            self._unsupported(f"It is of GGUF version {version}; 3 is the newest known", "Update ggq.")
        return version

    def _value(self, key: str) -> tuple[Scalar | Array, int]:
        """A metadata value, and the bytes that it loses when llama.cpp copies it: texts end at a NUL."""
        kind = int(self._number("I"))
        if kind == STRING:
            raw = self._string(key)
            return raw.decode("utf-8", "replace"), len(raw) - len(raw.split(b"\0", 1)[0])
        if kind == ARRAY:
            return self._array(key)
        if kind not in SCALARS:
            self._lie(f"The metadata entry {key!r} is of the unknown type {kind}.")
        return self._number(SCALARS[kind]), 0

    def _array(self, key: str) -> tuple[Array, int]:
        kind = int(self._number("I"))
        count = int(self._number("Q"))
        if kind == STRING:
            return self._strings(key, count)
        if kind not in SCALARS:
            self._lie(f"The metadata entry {key!r} is an array of the unknown type {kind}.")
        size = count * struct.calcsize("<" + SCALARS[kind])
        return Array(kind, count, self._take(size, f"{count} values of {key!r}")), 0

    def _strings(self, key: str, count: int) -> tuple[Array, int]:
        self._require(8 * count, f"{count} texts of {key!r}")
        # Vocabularies have some 100,000 texts, so this loop is written to be quick.
        buffer, unpack, start, lost = self._buffer, _LENGTH.unpack_from, self._position, 0
        here = start
        for _ in range(count):
            if here + 8 > len(buffer):
                self._require_from(here, 8, key)
            end = here + 8 + unpack(buffer, here)[0]
            if end > len(buffer):
                self._require_from(here + 8, end - here - 8, key)
            zero = buffer.find(0, here + 8, end)
            if zero >= 0:
                lost += end - zero
            here = end
        self._position = here
        return Array(STRING, count, bytes(buffer[start:here])), lost

    def _require_from(self, position: int, size: int, key: str) -> None:
        self._position = position
        self._require(size, f"a text of {key!r}")

    def _tensor(self) -> tuple[str, tuple[int, ...], tensor_types.TensorType, int]:
        name = self._name("tensor name", _NAME_LIMIT_BYTES)
        dimensions = int(self._number("I"))
        if dimensions > _DIMENSION_LIMIT:
            self._lie(f"The tensor {name!r} has {dimensions} dimensions; ggml knows {_DIMENSION_LIMIT}.")
        shape = tuple(int(self._number("q")) for _ in range(dimensions)) or (1,)
        number = int(self._number("I"))
        kind = tensor_types.by_number().get(number)
        if kind is None:
            raise GgufProblem(
                f"{self._path} has a tensor of a type that ggq does not know.",
                f"{name!r} is of type {number}.",
                "If a newer llama.cpp wrote it, update ggq; otherwise download the file again.",
            )
        elements = math.prod(max(size, 1) for size in shape)  # a zero must not hide an overflow
        if min(shape) < 0 or elements >= 1 << 63 or shape[0] % kind.block_weights:
            self._lie(f"The tensor {name!r} cannot have the shape {list(shape)} in type {kind.name}.")
        return name, shape, kind, int(self._number("Q"))

    def _placed(
        self,
        infos: Sequence[tuple[str, tuple[int, ...], tensor_types.TensorType, int]],
        data_offset: int,
        alignment: int,
    ) -> Iterator[TensorInfo]:
        """The tensors, each compared with the one before it and with the end of the file."""
        seen = set()
        expected = 0
        for name, shape, kind, offset in infos:
            if name in seen:
                self._lie(f"The tensor {name!r} is there twice.")
            seen.add(name)
            if offset != expected:
                self._lie(f"The tensor {name!r} is at byte {offset:,} of the data, not at {expected:,}.")
            data_bytes = kind.row_bytes(math.prod(shape))
            end = data_offset + offset + data_bytes
            if end > self._file_bytes:
                raise GgufProblem(
                    f"{self._path} is truncated.",
                    f"The tensor {name!r} ends at byte {end:,}; the file has {self._file_bytes:,}.",
                    "Download or make it again.",
                )
            expected += padded(data_bytes, alignment)
            yield TensorInfo(name, shape, kind.name, data_offset + offset, data_bytes, self._path)

    def _name(self, what: str, limit: int) -> str:
        length = int(self._number("Q"))
        if length > limit:
            self._lie(f"A {what} is said to be {length:,} bytes long; {limit:,} are allowed.")
        raw = self._take(length, f"a {what}")
        try:
            name = raw.decode("utf-8")
        except UnicodeDecodeError:
            self._lie(f"A {what} is not text.")
        if b"\0" in raw:  # llama.cpp would read less of it
            self._lie(f"A {what} holds a NUL: {shown(name)}.")
        return name

    def _string(self, what: str) -> bytes:
        return self._take(int(self._number("Q")), f"the text of {what!r}")

    def _count(self, what: str, limit: int) -> int:
        count = int(self._number("Q"))
        if count > limit:
            self._lie(f"It announces {count:,} {what}; up to {limit:,} are believed.")
        return count

    def _number(self, form: str) -> Any:
        form = "<" + form
        return struct.unpack(form, self._take(struct.calcsize(form), "a number"))[0]

    def _take(self, size: int, what: str) -> bytes:
        self._require(size, what)
        self._position += size
        return bytes(self._buffer[self._position - size : self._position])

    def _require(self, size: int, what: str) -> None:
        """Have the next ``size`` bytes in the buffer; refuse what the file, or any header, does not have."""
        end = self._position + size
        if end > _HEADER_LIMIT_BYTES and end <= self._file_bytes:
            self._lie(f"It would be larger than {_HEADER_LIMIT_BYTES:,} bytes.")
        while len(self._buffer) < end <= self._file_bytes:
            block = self._stream.read(max(_BLOCK_BYTES, end - len(self._buffer)))
            self._buffer += block
            if not block:
                break
        if len(self._buffer) < end:
            raise GgufProblem(
                f"The header of {self._path} is truncated, or wrong.",
                f"At byte {self._position:,} it announces {what} in {size:,} bytes; "
                f"{self._file_bytes - self._position:,} are left in the file.",
                "Download or make it again.",
            )

    def _lie(self, why: str) -> NoReturn:
        raise GgufProblem(f"The header of {self._path} is damaged.", why, "Download or make it again.")

    def _unsupported(self, why: str, next_step: str) -> NoReturn:
        raise GgufProblem(f"{self._path} is a GGUF file that llama.cpp does not read.", f"{why}.", next_step)

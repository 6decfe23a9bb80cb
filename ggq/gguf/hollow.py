"""A GGUF of another's header: with other tensors, and sparse, empty data."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ggq.gguf import tensor_types
from ggq.gguf.file import GgufFile
from ggq.gguf.header import DEFAULT_ALIGNMENT, Array, padded
from ggq.gguf.size import written_dimensions
from ggq.system import files

_UINT16, _UINT32, _INT32, _STRING, _ARRAY = 2, 4, 5, 8, 9
_VERSION = 3
_SPLIT = ("split.no", "split.count", "split.tensors.count")


@dataclass(frozen=True)
class HollowTensor:
    """A tensor to announce. ``shape`` in ggml's order, ``type`` in capitals; ``data``: what stands at its
    beginning, in pieces; without it the tensor is empty."""

    name: str
    shape: tuple[int, ...]
    type: str
    data: Iterable[bytes] = ()

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def data_bytes(self) -> int:
        return tensor_types.by_name()[self.type].row_bytes(self.elements)


@dataclass(frozen=True)
class Shard:
    """Which file of a split model is written: ``index`` (from 0) of ``count``; ``tensor_count``: of all."""

    index: int
    count: int
    tensor_count: int


def write(
    target: Path,
    base: GgufFile,
    tensors: Sequence[HollowTensor],
    changed: Mapping[str, int | str | Array],
    shard: Shard | None = None,
) -> None:
    """Write ``target`` as llama-quantize would write it of ``base``: its metadata but for the split's, then
    those that are ``changed`` (integers as u32), then ``tensors`` in their order. Of the shards only the
    first one has metadata, but for the split's own.

    Source: llama_model_quantize_impl in src/llama-quant.cpp and gguf_write_out in ggml/src/gguf.cpp, as for
    ``gguf_size.predicted_bytes``. Raises OSError.
    """
    entries: list[bytes] = []
    if shard is None or shard.index == 0:
        with base.path.open("rb") as stream:
            raw = stream.read(base.header_bytes)
        kept = [key for key in base.metadata if key not in _SPLIT and key not in changed]
        entries += [_entry(base, raw, key) for key in kept]
        entries += [_text(key.encode()) + _value(value) for key, value in changed.items()]
    if shard is not None:
        values = zip(_SPLIT, _split_values(shard), strict=True)
        entries += [_text(key.encode()) + value for key, value in values]
    infos: list[bytes] = []
    offsets: list[int] = []
    end = 0
    for tensor in tensors:
        infos.append(_info(tensor, end))
        offsets.append(end)
        end += padded(tensor.data_bytes, DEFAULT_ALIGNMENT)
    counts = struct.pack("<IQQ", _VERSION, len(tensors), len(entries))
    header = b"".join((b"GGUF", counts, *entries, *infos))
    start = padded(len(header), DEFAULT_ALIGNMENT)
    files.write_hollow(target, header, start + end)
    with target.open("r+b") as stream:
        for tensor, offset in zip(tensors, offsets, strict=True):
            stream.seek(start + offset)
            for piece in tensor.data:
                stream.write(piece)


def _entry(base: GgufFile, raw: bytes, key: str) -> bytes:
    """An entry of the header as llama.cpp copies it: texts end at a NUL."""
    start, end = base.entry_spans[key]
    if end - start == base.entry_bytes[key]:
        return raw[start:end]
    here = start + 8 + len(key.encode()) + 4
    value = base.metadata[key]
    if not isinstance(value, Array):
        return raw[start:here] + _text(_text_at(raw, here))
    here += 12  # the array's type and count
    copy = [raw[start:here]]
    for _ in range(len(value)):
        text = _text_at(raw, here)
        here += 8 + len(text)
        copy.append(_text(text))
    return b"".join(copy)


def _text_at(raw: bytes, position: int) -> bytes:
    (length,) = struct.unpack_from("<Q", raw, position)
    return raw[position + 8 : position + 8 + length]


def _text(text: bytes) -> bytes:
    text = text.split(b"\0", 1)[0]
    return struct.pack("<Q", len(text)) + text


def _value(value: int | str | Array) -> bytes:
    if isinstance(value, Array):
        return struct.pack("<I", _ARRAY) + value.encoded
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value.encode("utf-8", "surrogateescape"))
    return struct.pack("<II", _UINT32, value)


def _split_values(shard: Shard) -> tuple[bytes, bytes, bytes]:
    return (
        struct.pack("<IH", _UINT16, shard.index),
        struct.pack("<IH", _UINT16, shard.count),
        struct.pack("<Ii", _INT32, shard.tensor_count),
    )


def _info(tensor: HollowTensor, offset: int) -> bytes:
    dimensions = written_dimensions(tensor.shape)
    shape = tensor.shape[:dimensions]
    number = tensor_types.by_name()[tensor.type].number
    return _text(tensor.name.encode()) + struct.pack(f"<I{dimensions}QIQ", dimensions, *shape, number, offset)

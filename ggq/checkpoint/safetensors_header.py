"""The header of a safetensors file, read and checked as untrusted input.

The format: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggq.checkpoint.files import cut_short, damaged, explained, refuse_pointer
from ggq.system import untrusted
from ggq.system.untrusted import shown

# Bounds well above any model there is.
_DIMENSION_LIMIT = 8
_NAME_LIMIT = 512
TENSOR_LIMIT = 400_000  # of all files together

_BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
_GROUPS = (
    ("norms", re.compile(r"norm|\bln_|\.ln\d", re.IGNORECASE)),
    ("experts", re.compile(r"expert|block_sparse_moe|\bmlp\.gate\.")),
    ("attention", re.compile(r"attn|attention|\bmixer\.")),
    ("ffn", re.compile(r"mlp|feed_forward|\bffn\b|\bfc[12]\b")),
    ("embeddings", re.compile(r"embed|\bwte\b|\bwpe\b")),
    ("output", re.compile(r"lm_head|\boutput\b")),
)


@dataclass(frozen=True)
class CheckpointTensor:
    """A tensor as its safetensors header announces it. ``shape`` in torch's order, ``dtype`` as ``BF16``;
    ``form``: the format that its file says it is in (``pt``, ``mlx``), or an empty text."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: str
    data_bytes: int
    form: str = ""

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def group(self) -> str:
        """attention, ffn, experts, embeddings, output, norms, or other: by the names that are usual."""
        return next((group for group, pattern in _GROUPS if pattern.search(self.name)), "other")


def read(file: Path) -> Iterator[CheckpointTensor]:
    """The tensors of a safetensors file. No length is believed before it is compared with the file.

    Raises CheckpointProblem, OSError.
    """
    header, header_bytes, file_bytes, form = _header(file)
    data_bytes = file_bytes - 8 - header_bytes
    spans = []
    for name, info in header.items():
        tensor, begin = _tensor(file, name, info, form)
        spans.append((begin, begin + tensor.data_bytes, name))
        yield tensor
    expected = 0
    for begin, end, name in sorted(spans):
        if begin != expected:
            damaged(file, f"{shown(name)} begins at byte {begin:,} of the data, not at {expected:,}.")
        expected = end
    if expected > data_bytes:
        cut_short(file, 8 + header_bytes + expected, file_bytes)
    if expected < data_bytes:
        damaged(file, f"It has {data_bytes - expected:,} bytes after its last tensor.")


def places(file: Path) -> Iterator[tuple[CheckpointTensor, int]]:
    """The tensors of a file that ``read`` has found sound, and where in it each one's data begin."""
    header, header_bytes, _, form = _header(file)
    for name, info in header.items():
        tensor, begin = _tensor(file, name, info, form)
        yield tensor, 8 + header_bytes + begin


def _header(file: Path) -> tuple[dict[str, Any], int, int, str]:
    """The tensors' entries, the bytes of the header and of the file, and the format that it names."""
    with untrusted.open_regular(file) as stream:
        file_bytes = os.fstat(stream.fileno()).st_size
        length = int.from_bytes(start := stream.read(8), "little")
        refuse_pointer(file, start)
        if len(start) < 8 or length > file_bytes - 8:
            cut_short(file, 8 + length if len(start) == 8 else 8, file_bytes)
        if length > untrusted.TENSORS.text_bytes:
            damaged(
                file, f"It announces a header of {length:,} bytes; {untrusted.TENSORS.text_bytes:,} are read."
            )
        raw = stream.read(length)
    with explained(file):
        header = untrusted.as_object(untrusted.parse(raw, untrusted.TENSORS, unique_keys=True))
    metadata = header.pop("__metadata__", None)
    if metadata is not None and not _is_of_texts(metadata):
        damaged(file, "Its __metadata__ are not texts by name.")
    return header, length, file_bytes, str((metadata or {}).get("format", ""))


def _is_of_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())


def _tensor(file: Path, name: str, info: Any, form: str) -> tuple[CheckpointTensor, int]:
    """A tensor, and where its data begin."""
    if not name or len(name) > _NAME_LIMIT or not name.isprintable():
        why = (
            f"is {len(name):,} characters long; up to {_NAME_LIMIT} are read"
            if name.isprintable()
            else "cannot be shown"
        )
        damaged(file, f"The tensor name {shown(name)} {why}." if name else "A tensor has no name.")
    entry = info if isinstance(info, dict) else {}
    dtype = entry.get("dtype")
    shape = _naturals(entry.get("shape"))
    offsets = _naturals(entry.get("data_offsets"))
    if not isinstance(dtype, str) or shape is None or offsets is None or len(offsets) != 2:
        damaged(file, f"The entry of {shown(name)} is not a dtype, a shape and two offsets.")
    if dtype not in _BITS:
        damaged(file, f"{shown(name)} is of the unknown type {shown(dtype, 20)}.")
    begin, end = offsets
    if len(shape) > _DIMENSION_LIMIT or math.prod(shape) * _BITS[dtype] != 8 * (end - begin):
        damaged(
            file,
            f"{shown(name)}, {dtype} of shape {str(shape[:9])[:60]}, does not fill {end - begin:,} bytes.",
        )
    return CheckpointTensor(name, dtype, tuple(shape), file.name, end - begin, form), begin


def _naturals(value: Any) -> list[int] | None:
    """A list of natural numbers below 2**63, or None for anything else."""
    if isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value):
        return value
    return None

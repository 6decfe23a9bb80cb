"""ggml's tensor types: how many weights a block holds, and in how many bytes."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

from ggq.gguf import constants as gguf_constants


@dataclass(frozen=True)
class TensorType:
    """A tensor type: its number in a GGUF file, its name (``Q4_K``), its block."""

    number: int
    name: str
    block_weights: int
    block_bytes: int

    def row_bytes(self, width: int) -> int:
        """Bytes of a row of ``width`` weights, a multiple of ``block_weights``."""
        return width // self.block_weights * self.block_bytes


# What gguf 0.19 from PyPI does not know, or has wrong; from ggml-common.h of the pinned llama.cpp.
_MENDED = (TensorType(9, "Q8_1", 32, 36), TensorType(42, "Q2_0", 64, 18))


@functools.cache
def by_name() -> Mapping[str, TensorType]:
    """Every type that llama.cpp can read, by its name in capitals."""
    sizes = gguf_constants.constants().GGML_QUANT_SIZES
    known = {kind.name: TensorType(int(kind), kind.name, *block) for kind, block in sizes.items()}
    return known | {kind.name: kind for kind in _MENDED}


@functools.cache
def by_number() -> Mapping[int, TensorType]:
    """Every type that llama.cpp can read, by its number in a GGUF file."""
    return {kind.number: kind for kind in by_name().values()}

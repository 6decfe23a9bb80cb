"""Rows of numbers as ggml checks, widens and quantizes them, by its own library in this process.

ctypes gives Python's lock back while a function runs, so that threads work side by side. Types are named as
GGUF files name them (``Q4_K``).
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ggq import ggml_types
from ggq.errors import ToolchainProblem
from ggq.llamacpp.toolchain import SETUP_HINT, Toolchain

FLOAT_BYTES = 4
# What llama-quantize turns into other types (llama_tensor_dequantize_impl in src/llama-quant.cpp), and how.
_WIDENING: Mapping[str, str | None] = {
    "F32": None,
    "F16": "ggml_fp16_to_fp32_row",
    "BF16": "ggml_bf16_to_fp32_row",
}


class Rows:
    """The functions of one toolchain's library. Rows are bytes, one after the other, in memory that can be
    written to.

    Raises ToolchainProblem when the library is not there or lacks one of them.
    """

    def __init__(self, toolchain: Toolchain) -> None:
        self._library = _library(toolchain.lib_dir)

    def needs_importance(self, kind: str) -> bool:
        """Whether ggml ends the whole process when it has to quantize to this type without importance."""
        return bool(self._library.ggml_quantize_requires_imatrix(_number(kind)))

    def are_sound(self, kind: str, data: memoryview) -> bool:
        """Whether rows of a type are free of NaN and infinities, by ggml's own check, which tells more on the
        process's stderr."""
        return bool(self._library.ggml_validate_row_data(_number(kind), _address(data), len(data)))

    def widened(self, kind: str, data: memoryview, room: memoryview) -> memoryview:
        """Rows as float32: in ``room``, or where they are if they have that type."""
        function = _WIDENING[kind]
        if function is None:
            return data
        count = len(data) // 2
        values = room[: FLOAT_BYTES * count]
        getattr(self._library, function)(_address(data), _address(values), count)
        return values

    def quantize(
        self, kind: str, values: memoryview, width: int, importance: memoryview | None, room: memoryview
    ) -> memoryview:
        """Rows of ``width`` ``values`` (float32) in ``kind``: the part of ``room`` that they take.

        ``importance``: how much each of the ``width`` columns counts (float32); None: all the same, which
        ends the process for a type that ``needs_importance``.
        """
        count = len(values) // FLOAT_BYTES
        made = room[: ggml_types.by_name()[kind].row_bytes(count)]
        weights = None if importance is None else _address(importance)
        self._library.ggml_quantize_chunk(
            _number(kind), _address(values), _address(made), 0, count // width, width, weights
        )
        return made


def can_be_widened(kind: str) -> bool:
    """Whether ``Rows.widened`` takes this type."""
    return kind in _WIDENING


def quantize_rows(toolchain: Toolchain, kind: str, rows: Any) -> bytes:
    """``rows`` (float32, rows × width) in the type ``kind``, all columns counting the same.

    Raises ToolchainProblem when the library is not there or lacks the function.
    """
    import numpy as np

    count, width = rows.shape
    values, equal = (
        memoryview(bytearray(np.asarray(array, "f4").tobytes())) for array in (rows, np.ones(width))
    )
    room = memoryview(bytearray(ggml_types.by_name()[kind].row_bytes(count * width)))
    return bytes(Rows(toolchain).quantize(kind, values, width, equal, room))


def _address(data: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(data))


def _number(kind: str) -> int:
    return ggml_types.by_name()[kind].number


@functools.cache
def _library(lib_dir: Path) -> Any:
    names = ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll")
    path = next((lib_dir / name for name in names if (lib_dir / name).exists()), lib_dir / names[0])
    number, count, memory, size = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p, ctypes.c_size_t
    # ggml/include/ggml.h
    signatures: Mapping[str, tuple[Any, list[Any]]] = {
        "ggml_quantize_requires_imatrix": (ctypes.c_bool, [number]),
        "ggml_validate_row_data": (ctypes.c_bool, [number, memory, size]),
        "ggml_fp16_to_fp32_row": (None, [memory, memory, count]),
        "ggml_bf16_to_fp32_row": (None, [memory, memory, count]),
        "ggml_quantize_chunk": (size, [number, memory, memory, count, count, count, memory]),
    }
    try:
        library = ctypes.CDLL(str(path))
        for name, (result, arguments) in signatures.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise ToolchainProblem("ggml's library cannot be used.", f"{error}.", SETUP_HINT) from error
    return library

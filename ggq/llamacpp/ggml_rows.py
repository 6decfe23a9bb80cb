"""Rows of numbers as ggml checks, widens and quantizes them, by its own library in this process, or by ggq's
quicker build of the same functions (``quants``).

ctypes gives Python's lock back while a function runs, so that threads work side by side. Types are named as
GGUF files name them (``Q4_K``).
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ggq.errors import ToolchainProblem
from ggq.gguf import tensor_types
from ggq.llamacpp.toolchain import SETUP_HINT, Toolchain

FLOAT_BYTES = 4
QUICK = "ggq-quants"
# What llama-quantize turns into other types (llama_tensor_dequantize_impl in src/llama-quant.cpp), and how.
_WIDENING: Mapping[str, str | None] = {
    "F32": None,
    "F16": "ggml_fp16_to_fp32_row",
    "BF16": "ggml_bf16_to_fp32_row",
}

# tensor_requires_imatrix in src/llama-quant.cpp: to these types, some of them under some presets only,
# llama-quantize makes no tensor without importance, but for those that no matrix knows.
DEMANDING = frozenset(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "Q2_K"))


class Rows:
    """The functions of one toolchain's library. Rows are bytes, one after the other, in memory that can be
    written to.

    ``quick_types``: to be made by libggq-quants; None: those that are proven to be the same.

    Raises ToolchainProblem when a library is not there or lacks one of them.
    """

    def __init__(self, toolchain: Toolchain, quick_types: Collection[str] | None = None) -> None:
        self._library = _library(toolchain.lib_dir, "ggml-base")
        self._quick_types = toolchain.quick_types if quick_types is None else quick_types
        self._quick = _library(toolchain.lib_dir, QUICK) if self._quick_types else None

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
        made = room[: tensor_types.by_name()[kind].row_bytes(count)]
        if not self.quantize_quickly(kind, values, width, importance, made):
            weights = None if importance is None else _address(importance)
            self._library.ggml_quantize_chunk(
                _number(kind), _address(values), _address(made), 0, count // width, width, weights
            )
        return made

    def quantize_quickly(
        self, kind: str, values: memoryview, width: int, importance: memoryview | None, made: memoryview
    ) -> bool:
        """Fill ``made`` by libggq-quants, if it is one of the quick types. Returns whether it did."""
        if self._quick is None or kind not in self._quick_types:
            return False
        weights = None if importance is None else _address(importance)
        count = len(values) // FLOAT_BYTES // width
        done: int = self._quick.ggq_quantize(
            _number(kind), _address(values), _address(made), count, width, weights
        )
        return done == len(made)


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
    room = memoryview(bytearray(tensor_types.by_name()[kind].row_bytes(count * width)))
    return bytes(Rows(toolchain).quantize(kind, values, width, equal, room))


def _address(data: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(data))


def _number(kind: str) -> int:
    return tensor_types.by_name()[kind].number


def library_file(lib_dir: Path, name: str) -> Path:
    """Where a library of a toolchain is, as this platform names it; where it would be, if it is not there."""
    names = (f"lib{name}.so", f"lib{name}.dylib", f"{name}.dll")
    return next((lib_dir / name for name in names if (lib_dir / name).exists()), lib_dir / names[0])


_NUMBER, _COUNT, _MEMORY, _SIZE = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p, ctypes.c_size_t
_SIGNATURES: Mapping[str, Mapping[str, tuple[Any, list[Any]]]] = {
    "ggml-base": {  # ggml/include/ggml.h
        "ggml_quantize_requires_imatrix": (ctypes.c_bool, [_NUMBER]),
        "ggml_validate_row_data": (ctypes.c_bool, [_NUMBER, _MEMORY, _SIZE]),
        "ggml_fp16_to_fp32_row": (None, [_MEMORY, _MEMORY, _COUNT]),
        "ggml_bf16_to_fp32_row": (None, [_MEMORY, _MEMORY, _COUNT]),
        "ggml_quantize_chunk": (_SIZE, [_NUMBER, _MEMORY, _MEMORY, _COUNT, _COUNT, _COUNT, _MEMORY]),
    },
    QUICK: {  # vendor/llama.cpp/cmake/side_by_side.h
        "ggq_quantize": (_SIZE, [_NUMBER, _MEMORY, _MEMORY, _COUNT, _COUNT, _MEMORY]),
    },
}


@functools.cache
def _library(lib_dir: Path, name: str) -> Any:
    try:
        library = ctypes.CDLL(str(library_file(lib_dir, name)))
        for function_name, (result, arguments) in _SIGNATURES[name].items():
            function = getattr(library, function_name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise ToolchainProblem("ggml's library cannot be used.", f"{error}.", SETUP_HINT) from error
    return library

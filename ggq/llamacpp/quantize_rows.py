"""Rows of numbers as ggml quantizes them, by its own library in this process."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

from ggq import ggml_types
from ggq.errors import ToolchainProblem
from ggq.llamacpp.toolchain import SETUP_HINT, Toolchain


def quantize_rows(toolchain: Toolchain, kind: str, rows: Any) -> bytes:
    """``rows`` (float32, rows × width) in the type ``kind`` (``Q4_K``), without an importance matrix: all
    weights count the same.

    Raises ToolchainProblem when the library is not there or lacks the function.
    """
    import numpy as np

    known = ggml_types.by_name()[kind]
    count, width = rows.shape
    source = np.ascontiguousarray(rows, dtype=np.float32)
    target = ctypes.create_string_buffer(count * known.row_bytes(width))
    equal = np.ones(width, dtype=np.float32)
    pointer = ctypes.POINTER(ctypes.c_float)
    _library(toolchain.lib_dir).ggml_quantize_chunk(
        known.number, source.ctypes.data_as(pointer), target, 0, count, width, equal.ctypes.data_as(pointer)
    )
    return target.raw


@functools.cache
def _library(lib_dir: Path) -> Any:
    names = ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll")
    path = next((lib_dir / name for name in names if (lib_dir / name).exists()), lib_dir / names[0])
    try:
        library = ctypes.CDLL(str(path))
        function = library.ggml_quantize_chunk
    except (OSError, AttributeError) as error:
        raise ToolchainProblem("ggml's library cannot be used.", f"{error}.", SETUP_HINT) from error
    pointer = ctypes.POINTER(ctypes.c_float)
    # size_t ggml_quantize_chunk(type, src, dst, start, nrows, n_per_row, imatrix), ggml/include/ggml.h
    function.argtypes = [ctypes.c_int, pointer, ctypes.c_void_p, *[ctypes.c_int64] * 3, pointer]
    function.restype = ctypes.c_size_t
    return library

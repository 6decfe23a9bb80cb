"""Are a GGUF's values sound? A search for NaN and infinities, in samples or in full."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO

from ggq.gguf import tensor_types
from ggq.gguf.file import GgufFile
from ggq.gguf.header import TensorInfo
from ggq.progress import Listener, Step, silent

_SAMPLED_ROWS = 64
_CHUNK_BYTES = 4 << 20
_ANY_WIDTH = 256  # of a row: whole blocks of every type
# Of an IEEE float, the exponent's bits are all set for NaN and the infinities, and for nothing else.
_FLOATS: Mapping[str, tuple[str, int]] = {
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7F80_0000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
}


_INTEGERS = frozenset({"I8", "I16", "I32", "I64"})  # always finite


@dataclass(frozen=True)
class Scan:
    """Names of tensors: that hold NaN or infinity, and that are of a type which gguf-py cannot dequantize, so
    that nobody looked at them."""

    not_finite: tuple[str, ...]
    unread: tuple[str, ...] = ()


def scan_values(gguf: GgufFile, full: bool = False, listener: Listener = silent) -> Scan:
    """Look for NaN and infinity, in 64 rows spread over each tensor, or with ``full`` in every value.
    Quantized tensors are dequantized by gguf-py. Raises OSError."""
    total = gguf.tensor_bytes
    done = 0
    bad, unread = [], []
    for tensor in gguf.tensors:
        if not _can_read(tensor.type):
            unread.append(tensor.name)
        elif tensor.type not in _INTEGERS:
            with tensor.path.open("rb") as stream:
                if not all(_is_finite(tensor, stream, first, rows) for first, rows in _spans(tensor, full)):
                    bad.append(tensor.name)
        done += tensor.data_bytes
        listener(Step("check values", done, total))
    return Scan(tuple(bad), tuple(unread))


def _can_read(kind: str) -> bool:
    if kind in _FLOATS or kind in _INTEGERS:
        return True
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    found = GGMLQuantizationType.__members__.get(kind)
    if found is None:
        return False
    import numpy as np

    try:
        with np.errstate(all="ignore"):
            dequantize(np.zeros((1, tensor_types.by_name()[kind].row_bytes(_ANY_WIDTH)), np.uint8), found)
    except NotImplementedError:  # gguf-py knows the name alone
        return False
    return True


def _spans(tensor: TensorInfo, full: bool) -> Iterator[tuple[int, int]]:
    """(first row, rows) of what is read of a tensor."""
    if not tensor.elements:
        return
    rows = tensor.elements // tensor.shape[0]
    if full or rows <= _SAMPLED_ROWS:
        step = max(1, _CHUNK_BYTES * rows // tensor.data_bytes)
        yield from ((first, min(step, rows - first)) for first in range(0, rows, step))
    else:
        yield from ((index * (rows - 1) // (_SAMPLED_ROWS - 1), 1) for index in range(_SAMPLED_ROWS))


def _is_finite(tensor: TensorInfo, stream: IO[bytes], first_row: int, rows: int) -> bool:
    import numpy as np
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    row_bytes = tensor_types.by_name()[tensor.type].row_bytes(tensor.shape[0])
    stream.seek(tensor.offset_bytes + first_row * row_bytes)
    raw = np.frombuffer(stream.read(rows * row_bytes), dtype=np.uint8)
    if tensor.type in _FLOATS:
        form, exponent = _FLOATS[tensor.type]
        return not bool(((raw.view(form) & exponent) == exponent).any())
    with np.errstate(all="ignore"):
        values = dequantize(raw.reshape(rows, row_bytes), GGMLQuantizationType[tensor.type])
    return bool(np.isfinite(values).all())

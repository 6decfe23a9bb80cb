"""The weights of a packed checkpoint (GPTQ, FP8) beside the GGUF's: for where transformers does not run it.

They are unpacked here by the layouts that the formats' own libraries write, not by the converter's code: some
rows of each tensor.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

from ggq.checkpoint import safetensors_header, storage
from ggq.checkpoint.checkpoint import Checkpoint
from ggq.gguf import tensor_types
from ggq.gguf.file import GgufFile
from ggq.gguf.header import TensorInfo

_ROWS = 8
_SEARCHED_ROWS = 64  # at once
_RAW: Mapping[str, str] = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "I32": "<u4", "U32": "<u4"}
_SCALES = ("_scale_inv", "_scale")
# What rounding to the GGUF's type may cost: of the value, and of the largest in its row.
_ROUNDING: Mapping[str, tuple[float, float]] = {
    "F32": (1e-5, 1e-6),
    "F16": (1e-3, 1e-5),
    "BF16": (1 / 256, 1e-6),
    "Q8_0": (1e-3, 1 / 240),
}


@dataclass(frozen=True)
class Unpacked:
    """How many packed ``tensors`` there are, of how many the values were ``compared``, and the names in the
    GGUF of those that are ``wrong``. What the GGUF has under no name of its own or in another shape (experts
    that become one tensor), and a layout that is not known here, is not compared."""

    tensors: int = 0
    compared: int = 0
    wrong: tuple[str, ...] = ()


def compare(given: Checkpoint, made: GgufFile) -> Unpacked:
    """Raises OSError."""
    weights = _Weights(given)
    packed = list(weights.packed())
    in_gguf = {tensor.name: tensor for tensor in made.tensors}
    compared, wrong = 0, []
    for name, rows, columns in packed:
        tensor = in_gguf.get(_name(made, name))
        if tensor is None or tensor.shape != (columns, rows) or tensor.type not in _ROUNDING:
            continue
        try:
            same = _same(weights, name, tensor, made)
        except (IndexError, KeyError, ValueError, ZeroDivisionError):
            continue  # another layout than those below
        compared += 1
        if not same:
            wrong.append(tensor.name)
    return Unpacked(len(packed), compared, tuple(wrong))


def _name(made: GgufFile, name: str) -> str:
    """The name in the GGUF of a checkpoint's tensor; empty without one."""
    names = _names(made.architecture or "", made.block_count or 0)
    return (names.get_name(name, (".weight",)) if names is not None else None) or ""


@functools.cache
def _names(architecture: str, blocks: int) -> Any:
    from gguf.constants import MODEL_ARCH_NAMES
    from gguf.tensor_mapping import get_tensor_name_map

    known = {name: arch for arch, name in MODEL_ARCH_NAMES.items()}
    return get_tensor_name_map(known[architecture], blocks) if architecture in known else None


def _same(weights: _Weights, name: str, tensor: TensorInfo, made: GgufFile) -> bool:
    """Whether some rows of a tensor have the checkpoint's values. The converter may put rows into another
    order (heads, for rotation by pairs): then each must be found among all."""
    import numpy as np

    count = tensor.shape[1]
    rows = np.unique(np.linspace(0, count - 1, _ROWS).astype(np.int64))
    found = _gguf_rows(tensor, rows)
    for order in (rows, _by_pairs(rows, tensor, made)):
        if order is not None and _alike(found, weights.rows(name, order), tensor.type).all():
            return True
    pending = np.ones(len(rows), bool)
    for first in range(0, count, _SEARCHED_ROWS):
        some = weights.rows(name, np.arange(first, min(first + _SEARCHED_ROWS, count)))
        for index in np.flatnonzero(pending):
            pending[index] = not _alike(found[index], some, tensor.type).any()
    return not pending.any()


def _by_pairs(rows: Any, tensor: TensorInfo, made: GgufFile) -> Any:
    """The rows of the checkpoint that become ``rows`` where the two halves of each head are put in turns."""
    key = {"attn_q": "head_count", "attn_k": "head_count_kv"}.get(tensor.name.split(".")[-2])
    heads = made.integer(f"{made.architecture}.attention.{key}") if key else None
    if not heads or tensor.shape[1] % (2 * heads):
        return None
    width = tensor.shape[1] // heads
    return rows // width * width + rows % 2 * (width // 2) + rows % width // 2


def _alike(found: Any, expected: Any, kind: str) -> Any:
    """For each row whether it is ``expected`` but for rounding."""
    import numpy as np

    own, most = _ROUNDING[kind]
    size = np.abs(expected)
    return (np.abs(found - expected) <= own * size + most * size.max(axis=-1, keepdims=True)).all(axis=-1)


def _gguf_rows(tensor: TensorInfo, rows: Any) -> Any:
    import numpy as np
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    row_bytes = tensor_types.by_name()[tensor.type].row_bytes(tensor.shape[0])
    with tensor.path.open("rb") as stream:
        raw = b"".join(_read(stream, tensor.offset_bytes + int(row) * row_bytes, row_bytes) for row in rows)
    whole = np.frombuffer(raw, np.uint8).reshape(len(rows), row_bytes)
    return dequantize(whole, GGMLQuantizationType[tensor.type])


def _read(stream: IO[bytes], position: int, count: int) -> bytes:
    stream.seek(position)
    return stream.read(count)


class _Weights:
    """The packed tensors of a checkpoint."""

    def __init__(self, given: Checkpoint) -> None:
        self._settings = storage.settings(given.config)
        self._places = {
            tensor.name: (file, tensor, begin)
            for file in given.weight_files
            for tensor, begin in safetensors_header.places(file)
        }

    def packed(self) -> Iterator[tuple[str, int, int]]:
        """Name, rows and columns of each weight, unpacked."""
        for name, (_, tensor, _) in self._places.items():
            stem = name.removesuffix(".qweight")
            if stem != name:
                if all(f"{stem}.{word}" in self._places for word in ("qzeros", "scales", "g_idx")):
                    index = self._places[f"{stem}.g_idx"][1]
                    yield f"{stem}.weight", tensor.shape[1], index.shape[0]
            elif tensor.dtype.startswith("F8_E") and len(tensor.shape) == 2 and self._scale(name):
                yield name, *tensor.shape

    def rows(self, name: str, rows: Any) -> Any:
        """Some rows of a weight in float32."""
        return self._fp8(name, rows) if name in self._places else self._gptq(name, rows)

    def _scale(self, name: str) -> str:
        return next((name + word for word in _SCALES if name + word in self._places), "")

    def _gptq(self, name: str, rows: Any) -> Any:
        """qweight holds along the columns of the weight, and qzeros along its rows, 32 / bits numbers in each
        word, the lowest first. The zeros of the older form are one less than they mean."""
        import numpy as np

        stem = name.removesuffix(".weight")
        words, zeros = self._array(f"{stem}.qweight"), self._array(f"{stem}.qzeros")
        scales, groups = self._floats(f"{stem}.scales"), self._array(f"{stem}.g_idx").astype(np.int64)
        per_word = len(groups) // len(words)
        bits = 32 // per_word
        most = (1 << bits) - 1
        shifts = (np.arange(per_word) * bits).astype(np.uint32)
        numbers = (words[:, rows][:, None, :] >> shifts[None, :, None] & most).reshape(-1, len(rows))
        own = zeros[:, rows // per_word] >> (rows % per_word * bits).astype(np.uint32) & most
        offset = 0 if self._settings.get("checkpoint_format") == "gptq_v2" else 1
        centre = own.astype(np.int64) + offset
        values = (numbers.astype(np.int64) - centre[groups]) * scales[:, rows][groups]
        return values.T.astype(np.float32)

    def _fp8(self, name: str, rows: Any) -> Any:
        """One scale for all, for each row, or for each block."""
        import numpy as np

        file, tensor, begin = self._places[name]
        raw = np.memmap(file, np.uint8, "r", begin, tensor.shape)[rows]
        values = _eighths(tensor.dtype)[raw]
        scale = self._floats(self._scale(name))
        if scale.size == 1:
            return values * scale.reshape(1, 1)
        if scale.ndim == 1:
            return values * scale[rows][:, None]
        size = self._settings.get("weight_block_size")
        if not isinstance(size, list) or len(size) != 2:
            size = [-(-whole // parts) for whole, parts in zip(tensor.shape, scale.shape, strict=True)]
        return values * scale[rows // size[0]][:, np.arange(tensor.shape[1]) // size[1]]

    def _array(self, name: str) -> Any:
        import numpy as np

        file, tensor, begin = self._places[name]
        return np.memmap(file, _RAW[tensor.dtype], "r", begin, tensor.shape or (1,))

    def _floats(self, name: str) -> Any:
        import numpy as np

        raw = self._array(name)
        if self._places[name][1].dtype == "BF16":
            return (raw.astype(np.uint32) << 16).view(np.float32)
        return raw.astype(np.float32)


@functools.cache
def _eighths(dtype: str) -> Any:
    """The values of all 256 bytes of a float of eight bits."""
    import numpy as np

    byte = np.arange(256)
    if dtype == "F8_E5M2":  # the upper half of a float of sixteen
        return (byte.astype(np.uint16) << 8).view(np.float16).astype(np.float32)
    exponent, fraction = byte >> 3 & 15, byte & 7
    size = np.where(exponent == 0, fraction / 8 * 2.0**-6, (1 + fraction / 8) * 2.0 ** (exponent - 7.0))
    size[byte & 127 == 127] = np.nan
    return np.where(byte < 128, size, -size).astype(np.float32)

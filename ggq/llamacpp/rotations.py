"""By which angles and factors llama.cpp turns queries and keys: measured in its own graph as it computes.

Nothing here knows a formula of rotary embeddings. What goes into each rotation is compared with what comes
out of it, so a key that llama.cpp does not read, or reads otherwise than it was meant, shows.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_LAYER = re.compile(r"-(\d+)\b")
_PLAIN_PAIRS = 0  # GGML_ROPE_TYPE_NORMAL: neighbours are a pair; in all others the halves are
_F32 = 0


class _Tensor(ctypes.Structure):
    """``struct ggml_tensor`` of the pinned ggml.h, as far as it is read."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    )


@dataclass(frozen=True)
class Rotation:
    """Complex factors, tokens × pairs of dimensions, of one rotation. ``layer``: None where the graph does
    not name it."""

    layer: int | None
    factors: Any


class Watch:
    """Measures the rotations of what is evaluated in a context that has its ``callback``."""

    def __init__(self, lib: Any) -> None:
        """``lib``: the binding. Raises LookupError when ggml's library cannot be asked."""
        from llama_cpp import _ggml

        try:
            self._kind, self._name = _ggml.libggml.ggml_op_desc, _ggml.libggml.ggml_get_name
        except AttributeError as error:
            raise LookupError("ggml does not name its operations") from error
        for function in (self._kind, self._name):
            function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_char_p
        self._found: list[Rotation] = []
        self._before: Any = None
        self.callback = lib.ggml_backend_sched_eval_callback(self._see)

    def take(self) -> list[Rotation]:
        """What was measured since the last time."""
        found, self._found = self._found, []
        return found

    def _see(self, address: int, ask: bool, _data: Any) -> bool:
        """Called before (``ask``) and after each operation; True: it is computed by itself, so that what it
        turns is there before and still unturned."""
        if self._kind(address) != b"ROPE":
            return True
        node = _at(address)
        if node.name != self._name(address):
            return True  # another layout than the pinned one: nothing is measured
        if ask:
            self._before = _values(_at(node.src[0]))
            return True
        before, after = self._before, _values(node)
        self._before = None
        if before is not None and after is not None:
            layer = _LAYER.search(node.name.decode("utf-8", "replace"))
            factors = _factors(before, after, node.op_params[1], node.op_params[2])
            self._found.append(Rotation(int(layer[1]) if layer else None, factors))
        return True


def joined(first: Sequence[Rotation], then: Sequence[Rotation]) -> list[Rotation]:
    """The rotations of two evaluations in a row, of which the graph is the same; none where it is not."""
    import numpy as np

    if [it.layer for it in first] != [it.layer for it in then]:
        return []
    return [
        Rotation(one.layer, np.concatenate([one.factors, other.factors]))
        for one, other in zip(first, then, strict=True)
    ]


def _at(address: int) -> Any:
    return ctypes.cast(address, ctypes.POINTER(_Tensor)).contents


def _values(tensor: Any) -> Any:
    """A copy, tokens × heads × dimensions; None for a type that is not float32."""
    import numpy as np

    if tensor.type != _F32 or not tensor.data or tensor.ne[3] != 1:
        return None
    shape, strides = tuple(tensor.ne)[2::-1], tuple(tensor.nb)[2::-1]
    reach = sum((count - 1) * stride for count, stride in zip(shape, strides, strict=True)) + 4
    memory = (ctypes.c_char * reach).from_address(tensor.data)
    return np.ndarray(shape, np.float32, memory, strides=strides).astype(np.float64)


def _factors(before: Any, after: Any, width: int, mode: int) -> Any:
    """What each pair was multiplied by, taken as complex numbers: the best fit over the heads."""
    import numpy as np

    one, other = _pairs(before[..., :width], mode), _pairs(after[..., :width], mode)
    weight = (np.abs(one) ** 2).sum(axis=1)
    product = (np.conj(one) * other).sum(axis=1)
    return np.where(weight > 0, product / np.where(weight > 0, weight, 1), np.nan)


def _pairs(values: Any, mode: int) -> Any:
    if mode == _PLAIN_PAIRS:
        return values[..., 0::2] + 1j * values[..., 1::2]
    half = values.shape[-1] // 2
    return values[..., :half] + 1j * values[..., half:]

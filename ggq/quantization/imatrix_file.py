"""An imatrix: how much each column of a tensor counts, as llama-quantize itself reads it.

Source: load_imatrix in tools/quantize/quantize.cpp and common_imatrix_load in common/imatrix-loader.cpp.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggq.errors import GgufProblem, UsageProblem
from ggq.gguf import file as gguf_file
from ggq.gguf.file import GgufFile
from ggq.gguf.header import Array, TensorInfo

_SUMS, _COUNTS = ".in_sum2", ".counts"
TOKEN_TABLES = (gguf_file.EMBEDDINGS, "per_layer_token_embd.weight")


@dataclass(frozen=True)
class Importance:
    """A matrix that llama-imatrix wrote: ``path`` as it was given; ``sums`` of squared activations and the
    ``counts`` of their tokens by tensor, both still on the disk."""

    path: Path
    file: GgufFile
    sums: Mapping[str, TensorInfo]
    counts: Mapping[str, TensorInfo]

    def entries(self) -> dict[str, str | int]:
        """The metadata that llama-quantize adds to a file that was made with this matrix, in its order."""
        entries: dict[str, str | int] = {"quantize.imatrix.file": _cut(str(self.path))}
        datasets = self.file.metadata.get("imatrix.datasets")
        if isinstance(datasets, Array) and datasets.is_of_texts and len(datasets):
            entries["quantize.imatrix.dataset"] = _cut(str(datasets[0]))
        entries["quantize.imatrix.entries_count"] = len(self.sums)
        chunks = self.file.integer("imatrix.chunk_count")
        if chunks:
            entries["quantize.imatrix.chunks_count"] = chunks
        return entries

    def fits(self, name: str, shape: Sequence[int]) -> bool:
        """Whether it has weights for a tensor of this shape: for each column of each expert one."""
        return name in self.sums and self.sums[name].elements == shape[0] * math.prod(shape[2:])

    def met_tokens(self, name: str) -> bool:
        """Whether any token went through a tensor that it knows. Raises OSError."""
        return bool((_numbers(self.counts[name]) > 0).any())

    def tokens_met(self, name: str) -> list[int]:
        """How many tokens went through each expert of a tensor; of one without experts: through it. Raises
        OSError."""
        return [int(count) for count in _numbers(self.counts[name])]

    def is_finite(self) -> bool:
        """Whether all weights are numbers; else llama-quantize refuses the matrix. Raises OSError."""
        import numpy as np

        return all(bool(np.isfinite(self.weights(name)).all()) for name in self.sums)

    def weights(self, name: str) -> Any:
        """The weights of a tensor's columns (float32), one expert after the other. Raises OSError."""
        import numpy as np

        counts = _numbers(self.counts[name]).astype(np.float64)
        counts = np.trunc(counts + np.copysign(0.5, counts)).astype(np.float32)  # C's lround
        sums = _numbers(self.sums[name]).reshape(len(counts), -1)
        weights = np.ones_like(sums)
        np.divide(sums, counts[:, None], out=weights, where=counts[:, None] > 0)
        return weights.reshape(-1)


def read(path: Path) -> Importance:
    """Read a matrix's header. Raises UsageProblem when it is not one that llama-imatrix writes today."""
    try:
        matrix = gguf_file.read(path)
        if matrix.text("general.type") != "imatrix":
            raise GgufProblem(f"{path} is a GGUF file without an imatrix.")
        sums, counts = (_ending(matrix, suffix) for suffix in (_SUMS, _COUNTS))
        odd = [name for name in {*sums, *counts} if not _fits(sums.get(name), counts.get(name))]
        if odd or not sums:
            what = f"The sums and counts of {min(odd)!r} do not belong together." if odd else "It is empty."
            raise GgufProblem(what)
    except GgufProblem as error:
        raise UsageProblem(
            f"{path} is not an imatrix.",
            f"{error.what} {error.why}",
            "Make one with `ggq imatrix`.",
        ) from error
    return Importance(path, matrix, sums, counts)


def _ending(matrix: GgufFile, suffix: str) -> dict[str, TensorInfo]:
    return {
        tensor.name.removesuffix(suffix): tensor for tensor in matrix.tensors if tensor.name.endswith(suffix)
    }


def _fits(sums: TensorInfo | None, counts: TensorInfo | None) -> bool:
    if sums is None or counts is None or sums.type != "F32" or counts.type != "F32":
        return False
    return bool(counts.elements) and not sums.elements % counts.elements


def _numbers(tensor: TensorInfo) -> Any:
    import numpy as np

    return np.fromfile(tensor.path, "<f4", count=tensor.elements, offset=tensor.offset_bytes)


def _cut(text: str) -> str:
    """What llama-quantize's field of 127 bytes holds of a text; it may end within a character."""
    return os.fsencode(text)[:127].decode("utf-8", "surrogateescape")

"""An imatrix that is still to be made, as far as its file can be known: for the plan of a run."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ggq.gguf import file as gguf_file
from ggq.gguf import hollow as gguf_hollow
from ggq.gguf.file import GgufFile
from ggq.gguf.header import Array
from ggq.gguf.hollow import HollowTensor
from ggq.quantization import imatrix_file
from ggq.quantization.imatrix_file import Importance

_STRING = 8
_BLOCK = re.compile(r"blk\.(\d+)\.")
_ONE = struct.pack("<f", 1.0)


def unmet_blocks(base: GgufFile) -> Sequence[int]:
    """The blocks for multi-token prediction (NextN), which stand behind the others: no forward pass goes
    through them, so no imatrix knows their tensors."""
    count = base.block_count or 0
    extra = base.integer(f"{base.architecture}.nextn_predict_layers") or 0
    return range(max(0, count - extra), count)


def matrix(base: GgufFile, folder: Path, target: Path, text_name: str) -> Importance:
    """A stand-in in ``folder`` for the matrix that ``ggq imatrix`` would write to ``target``: it knows every
    tensor that a forward pass can meet. Its sums are empty. Raises DiskFull, OutputProblem."""
    unmet = unmet_blocks(base)
    spared = (*imatrix_file.TOKEN_TABLES, gguf_file.OUTPUT)
    tensors = []
    for tensor in base.tensors:
        block = _BLOCK.match(tensor.name)
        if len(tensor.shape) < 2 or tensor.name in spared or (block and int(block[1]) in unmet):
            continue
        count = math.prod(tensor.shape[2:])
        tensors.append(HollowTensor(f"{tensor.name}.in_sum2", (tensor.shape[0], count), "F32"))
        tensors.append(HollowTensor(f"{tensor.name}.counts", (1, count), "F32", [_ONE * count]))
    name = text_name.encode("utf-8", "surrogateescape")
    changed: dict[str, int | str | Array] = {
        "general.type": "imatrix",
        "imatrix.datasets": Array(_STRING, 1, struct.pack("<Q", len(name)) + name),
        "imatrix.chunk_count": 1,
        "imatrix.chunk_size": 1,
    }
    stand_in = folder / "expected.gguf"
    gguf_hollow.write(stand_in, base, tensors, changed)
    return replace(imatrix_file.read(stand_in), path=target)


def file_bytes(base: GgufFile) -> int:
    """What the matrix takes on the disk, from above: a float32 for each column of each tensor."""
    weights = [tensor.shape for tensor in base.tensors if len(tensor.shape) > 1]
    return sum(4 * shape[0] * math.prod(shape[2:]) + 512 for shape in weights) + 4096

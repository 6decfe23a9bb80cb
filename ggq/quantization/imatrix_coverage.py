"""An imatrix compared with a model's tensors, before any of them is quantized."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ggq.errors import UsageProblem
from ggq.gguf import file as gguf_file
from ggq.llamacpp.ggml_rows import DEMANDING
from ggq.llamacpp.tool_output import PlannedTensor
from ggq.quantization import imatrix_file
from ggq.quantization.imatrix_file import Importance

_SPARED = frozenset((*imatrix_file.TOKEN_TABLES, gguf_file.OUTPUT))
# The next wider type that can be made without importance, of the same blocks of 256; Q2_K is refused without
# it under Q2_K_S only.
_INSTEAD: Mapping[str, str] = {
    "IQ1_S": "Q2_K",
    "IQ1_M": "Q2_K",
    "IQ2_XXS": "Q2_K",
    "IQ2_XS": "Q2_K",
    "IQ2_S": "Q2_K",
    "IQ3_XXS": "IQ3_S",
    "Q2_K": "Q3_K",
}
_NAMES_SHOWN = 6


@dataclass(frozen=True)
class Uncovered:
    """A tensor that was to become ``wanted_type``, which needs importance, of which the matrix has none."""

    name: str
    wanted_type: str
    type: str

    @property
    def override(self) -> str:
        """As llama-quantize's option --tensor-type has it: a regular expression, which it folds to lower
        case, so that a capital letter is found by a dot only."""
        pattern = re.sub(r"[A-Z]", ".", re.escape(self.name))
        return f"^{pattern}$={self.type.lower()}"


def uncovered(tensors: Sequence[PlannedTensor], matrix: Importance, ftype: str) -> tuple[Uncovered, ...]:
    """The tensors whose type llama-quantize would refuse to make with this matrix, and what they get instead.

    Raises UsageProblem for a matrix of another model: none of its tensors are this one's, or widths differ.
    """
    _refuse_other_model(tensors, matrix)
    found = []
    for tensor in tensors:
        kind = tensor.target_type
        if kind == tensor.source_type or not demands(tensor.name, kind, ftype):
            continue
        if not (matrix.fits(tensor.name, tensor.shape) and matrix.met_tokens(tensor.name)):
            instead = _INSTEAD[kind]
            found.append(Uncovered(tensor.name, kind, "Q3_K" if ftype == "Q2_K_S" else instead))
    return tuple(found)


def demands(name: str, kind: str, ftype: str) -> bool:
    """Whether llama-quantize, given a matrix, refuses to make a tensor of this type without its importance
    (tensor_requires_imatrix in src/llama-quant.cpp)."""
    return kind in DEMANDING and name not in _SPARED and (kind != "Q2_K" or ftype == "Q2_K_S")


def words(found: Iterable[Uncovered], preset: str) -> str:
    """One sentence for a person; empty where all tensors are covered."""
    types: dict[tuple[str, str], list[str]] = {}
    for it in found:
        types.setdefault((it.wanted_type, it.type), []).append(it.name)
    parts = []
    for (wanted, kind), names in types.items():
        more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
        parts.append(f"{kind} in place of {wanted}: {', '.join(names[:_NAMES_SHOWN])}{more}")
    if not parts:
        return ""
    return (
        f"{preset}: the imatrix has nothing for some tensors (no token of its text went through"
        f" them), so they get a type that needs none. {'; '.join(parts)}."
    )


def _refuse_other_model(tensors: Sequence[PlannedTensor], matrix: Importance) -> None:
    known = [tensor for tensor in tensors if tensor.name in matrix.sums and tensor.name not in _SPARED]
    unlike = [tensor for tensor in known if not matrix.fits(tensor.name, tensor.shape)]
    if known and not unlike:
        return
    if unlike:
        first = unlike[0]
        has, wants = matrix.sums[first.name].elements, first.shape[0] * math.prod(first.shape[2:])
        why = f"It has {has:,} columns for {first.name}, which has {wants:,} here."
    else:
        why = f"None of the {len(matrix.sums):,} tensors that it knows is in this model."
    raise UsageProblem(
        f"{matrix.path} is the imatrix of another model.",
        why,
        "Give that of this model with --imatrix FILE, or let ggq make it: --imatrix auto.",
    )

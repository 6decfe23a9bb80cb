"""What llama.cpp's tools print, as dataclasses. Output that is not known is refused, in words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ggq.errors import ToolchainProblem

_TENSOR = re.compile(
    r"^\[\s*(?P<index>\d+)/\s*(?P<count>\d+)\] (?P<name>\S+)\s+- \[(?P<shape>[\d, ]+)\], "
    r"type =\s*(?P<source>\w+), "
    r"(?:size =\s*[\d.]+ MiB(?: ->\s*[\d.]+ MiB \((?P<target>\w+)\))?\s*$|converting to (?P<converted>\w+) )"
)
_FALLBACK = re.compile(
    r"^warning: (?P<name>\S+)\s+- ncols\s+(?P<columns>\d+) not divisible by\s+(?P<block>\d+) "
    r"\(required for type\s+(?P<wanted>\w+)\).*-> falling back to\s+(?P<target>\w+)"
)
_FALLBACKS = re.compile(r"WARNING: (?P<fell>\d+) of (?P<count>\d+) tensor\(s\) required fallback")


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor under a preset, as llama-quantize decides it. ``shape`` is in ggml's order (row width
    first); types are ggml's names in capitals, as ``Q4_K``."""

    name: str
    shape: tuple[int, ...]
    source_type: str
    target_type: str


@dataclass(frozen=True)
class Fallback:
    """A tensor whose row width does not divide by the wanted type's block."""

    name: str
    row_width: int
    wanted_type: str
    target_type: str


@dataclass(frozen=True)
class QuantizePlan:
    """What ``llama-quantize --dry-run`` said."""

    tensors: tuple[PlannedTensor, ...]
    fallbacks: tuple[Fallback, ...]
    needs_imatrix: bool


def type_name(word: str) -> str:
    """llama.cpp's ``q4_K`` or ``bf16`` as GGUF's ``Q4_K`` or ``BF16``."""
    return word.upper()


def quantize_plan(lines: Iterable[str]) -> QuantizePlan:
    """Parse ``llama-quantize --dry-run``. Raises ToolchainProblem when a tensor is missing from it."""
    tensors: list[PlannedTensor] = []
    fallbacks: list[Fallback] = []
    counts: set[int] = set()
    needs_imatrix = False
    fell = 0
    for line in lines:
        if found := _TENSOR.match(line):
            counts.add(int(found["count"]))
            source = type_name(found["source"])
            shape = [int(part) for part in found["shape"].split(",")]
            while len(shape) > 1 and shape[-1] == 1:
                shape.pop()
            target = found["target"] or found["converted"]
            tensors.append(
                PlannedTensor(found["name"], tuple(shape), source, type_name(target) if target else source)
            )
        elif found := _FALLBACK.match(line):
            fallbacks.append(
                Fallback(
                    found["name"],
                    int(found["columns"]),
                    type_name(found["wanted"]),
                    type_name(found["target"]),
                )
            )
        elif found := _FALLBACKS.search(line):
            fell = int(found["fell"])
        elif "will require an imatrix" in line:
            needs_imatrix = True
    if counts != {len(tensors)} or fell != len(fallbacks):
        raise unknown(
            "llama-quantize --dry-run", f"{len(tensors)} tensors and {len(fallbacks)} fallbacks read"
        )
    return QuantizePlan(tuple(tensors), tuple(fallbacks), needs_imatrix)


def quantize_progress(line: str) -> tuple[int, int] | None:
    """``[   9/  75] …`` -> (9, 75); None for any other line."""
    found = re.match(r"^\[\s*(\d+)/\s*(\d+)\] ", line)
    return (int(found[1]), int(found[2])) if found else None


def token_ids(lines: Iterable[str]) -> list[int]:
    """The list that ``llama-tokenize --ids`` prints. Raises ToolchainProblem without one."""
    for line in lines:
        if found := re.match(r"^\[([\d, -]*)\]$", line):
            return [int(word) for word in found[1].split(",") if word.strip()]
    raise unknown("llama-tokenize --ids", "no list of tokens")


def converter_progress(line: str) -> tuple[float, float] | None:
    """The converter's own bar, ``Writing:  51%|…| 8.52M/16.8M`` -> (bytes done, bytes in all)."""
    found = re.search(r"Writing:\s+\d+%.*\|\s*([\d.]+)([kMGT]?)/([\d.]+)([kMGT]?) ", line)
    if not found:
        return None
    scale = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
    return float(found[1]) * scale[found[2]], float(found[3]) * scale[found[4]]


def quantize_reason(lines: Sequence[str]) -> str:
    """Why llama-quantize failed, by its own last lines: the one that says so, else the last; or nothing."""
    reasons = [line for line in lines if "failed to quantize" in line] or lines
    return reasons[-1] if reasons else ""


def unknown(tool: str, detail: str) -> ToolchainProblem:
    """The error for output that was not expected. ``detail``: what was missed."""
    return ToolchainProblem(
        f"{tool} printed something that ggq does not know.",
        f"{detail}.",
        "Run `ggq doctor`; if these tools are not of the pinned commit, run `ggq setup`.",
    )

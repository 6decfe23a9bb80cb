"""A GGUF that is measured: what it is called, and what proves which one it was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ggq import files, gguf_file
from ggq.gguf_file import GgufFile
from ggq.progress import Listener, silent


@dataclass(frozen=True)
class Subject:
    """``name``: the preset that its name or header tells, else the file's stem; ``sha256``: of the file, of a
    split model the shards' joined by ``+``; ``bits_per_weight`` counts tensor data."""

    name: str
    path: Path
    sha256: str
    file_bytes: int
    bits_per_weight: float
    parameter_count: int
    architecture: str | None
    context_length: int | None


def identify(paths: Sequence[Path], listener: Listener = silent) -> tuple[Subject, ...]:
    """Read and digest GGUF files. Raises GgufProblem."""
    found = [_identify(gguf_file.read_all(path), listener) for path in paths]
    twice = {name for name, count in Counter(subject.name for subject in found).items() if count > 1}
    return tuple(
        replace(subject, name=subject.path.stem) if subject.name in twice else subject for subject in found
    )


def _identify(gguf: GgufFile, listener: Listener) -> Subject:
    named = gguf_file.parse_name(gguf.path.name)
    digests = [files.sha256_file(part, listener, f"digest of {part.name}") for part in gguf.paths]
    return Subject(
        name=named.type or gguf.file_type or gguf.path.stem,
        path=gguf.path,
        sha256="+".join(digests),
        file_bytes=gguf.file_bytes,
        bits_per_weight=gguf.bits_per_weight,
        parameter_count=gguf.parameter_count,
        architecture=gguf.architecture,
        context_length=gguf.context_length,
    )

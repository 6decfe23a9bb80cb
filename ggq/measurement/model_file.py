"""A GGUF that is measured: what it is called, and what proves which one it was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from ggq.gguf import file as gguf_file
from ggq.gguf import names as gguf_names
from ggq.progress import Listener, silent
from ggq.system import files


@dataclass(frozen=True)
class ModelFile:
    """What a record says of a GGUF.

    ``name``: the preset that its name or header tells, else the file's stem; ``type``: that preset or None;
    ``sha256``: of the file, of a split model the shards' joined by ``+``; ``bits_per_weight`` counts tensor
    data.
    """

    name: str
    file_name: str
    sha256: str
    file_bytes: int
    bits_per_weight: float
    parameter_count: int
    architecture: str | None = None
    context_length: int | None = None
    type: str | None = None


@dataclass(frozen=True)
class Subject(ModelFile):
    """A GGUF on this disk."""

    path: Path = field(kw_only=True)

    @property
    def recorded(self) -> ModelFile:
        """Without its place, which is nobody's business."""
        return ModelFile(**{it.name: getattr(self, it.name) for it in fields(ModelFile)})


def of(path: Path, listener: Listener = silent) -> Subject:
    """Read and digest a GGUF file, of a split model all shards. Raises GgufProblem."""
    gguf = gguf_file.read_model(path)
    named = gguf_names.parse_name(gguf.path.name)
    digests = [files.sha256_file(part, listener, f"digest of {part.name}") for part in gguf.paths]
    kind = named.type or gguf.file_type
    return Subject(
        name=kind or gguf.path.stem,
        file_name=gguf.path.name,
        type=kind,
        path=gguf.path,
        sha256="+".join(digests),
        file_bytes=gguf.file_bytes,
        bits_per_weight=gguf.bits_per_weight,
        parameter_count=gguf.parameter_count,
        architecture=gguf.architecture,
        context_length=gguf.context_length,
    )


def distinct(subjects: Iterable[Subject]) -> tuple[Subject, ...]:
    """Each file once, and no two of one name: those of one type by their files' stems, and by their digests
    where even these are the same."""
    once = list({subject.path.resolve(): subject for subject in subjects}.values())
    longer: tuple[Callable[[Subject], str], ...] = (
        lambda it: it.path.stem,
        lambda it: f"{it.path.stem} {it.sha256[:8]}",
    )
    for name in longer:
        counts = Counter(subject.name for subject in once)
        once = [replace(it, name=name(it)) if counts[it.name] > 1 else it for it in once]
    return tuple(once)

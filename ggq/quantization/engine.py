"""What makes a preset's files of a 16-bit GGUF: the engines have this in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from ggq.errors import GgufProblem
from ggq.gguf import file as gguf_file
from ggq.gguf.file import GgufFile
from ggq.llamacpp.toolchain import Toolchain
from ggq.quantization.recipe import Recipe, differences
from ggq.quantization.tensor_source import Source
from ggq.session import Session
from ggq.settings import choice


class EngineName(StrEnum):
    AUTO = "auto"
    ONE_PASS = "one-pass"
    LLAMA_QUANTIZE = "llama-quantize"


def parse_engine(word: str) -> EngineName:
    """An engine by its name; the name of earlier versions works, too. Raises UsageProblem."""
    return EngineName.ONE_PASS if word.lower() == "sweep" else choice(word, "engine", EngineName)


@dataclass(frozen=True)
class Quantized:
    """The files of one preset as they were written. ``seconds``: the tool's; of one pass, which makes several
    presets at once, those of them all. ``peak_memory_bytes``: resident; None: not told."""

    paths: tuple[Path, ...]
    file_bytes: int
    seconds: float
    peak_memory_bytes: int | None


@dataclass(frozen=True)
class Workplace:
    """Where and with what an engine works. ``kept``: a folder for unfinished work, which a run that is broken
    off leaves to the next; ``staging``: one that ends with the run; ``model``: the name in the files' names;
    ``max_memory_bytes``: what blocks of rows may take."""

    session: Session
    model: str
    staging: Path
    kept: Path
    threads: int
    max_memory_bytes: int


@dataclass(frozen=True)
class Batch:
    """Files that were finished together, in the order of their recipes. ``findings``: for their record."""

    recipes: tuple[Recipe, ...]
    files: tuple[Quantized, ...]
    findings: Mapping[str, Any]


class Engine(Protocol):
    """Makes files. ``needs_file``: the 16-bit GGUF has to be on the disk, data and all."""

    name: EngineName
    needs_file: bool

    def obstacle(self, toolchain: Toolchain, base: GgufFile, recipe: Recipe) -> str | None:
        """Why it cannot make this file as llama-quantize would: a sentence; None: it can. Raises OSError."""

    def make(self, recipes: Sequence[Recipe], source: Source, place: Workplace) -> Iterator[Batch]:
        """Make and prove the files, batch by batch. Raises GgqError."""


def prove(paths: Sequence[Path], recipe: Recipe) -> None:
    """Compare finished files with their recipe, sizes and types. Raises GgufProblem where they differ."""
    name = recipe.preset.name
    file_bytes = sum(path.stat().st_size for path in paths)
    if file_bytes != recipe.size.file_bytes:
        raise GgufProblem(
            f"{file_bytes} bytes were written for {name}.",
            f"The recipe has {recipe.size.file_bytes}.",
            "Report this, with the model's name and `ggq doctor --json`.",
        )
    wrong = differences(recipe, gguf_file.read_all(paths[0]))
    if wrong:
        raise GgufProblem(
            f"The {name} file is not what its recipe says.",
            f"{len(wrong)} tensors differ, the first: {wrong[0]}.",
            "Report this, with the model's name and `ggq doctor --json`.",
        )

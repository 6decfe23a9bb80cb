"""What a job will do, decided before it does any of it: a dry run prints it, a run executes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ggq.llamacpp.tools import QuantizeOptions
from ggq.operations.auto_preset import AutoChoice
from ggq.operations.base import GivenBase
from ggq.operations.base_estimate import BaseEstimate
from ggq.operations.request import Request
from ggq.presets.catalogue import Preset
from ggq.quantization.engine import EngineName
from ggq.quantization.imatrix_coverage import Uncovered
from ggq.quantization.recipe import SizeEstimate
from ggq.system.texts import Text

INTERNAL = {"internal": True}  # of fields: nothing that a reader of --json needs


@dataclass(frozen=True)
class PlannedFile:
    """A preset's file before it is made, as QuantizedFile has it afterwards.

    ``exact``: asked of llama-quantize; else estimated from the preset's nominal bits, since only the weights
    can tell more. ``engine`` makes it (None: that is not known yet), and ``why`` not the one that is tried
    first. ``uncovered``: tensors that the imatrix does not know, and what they get instead.
    ``made``: an earlier run made it by the same work, and it is whole.
    """

    preset: str
    name: str
    size: SizeEstimate
    exact: bool
    made: bool
    engine: EngineName | None
    why: str = ""
    uncovered: tuple[Uncovered, ...] = ()


@dataclass(frozen=True)
class PlannedBase:
    """The 16-bit GGUF on the way to the presets; ``kept``: it stays beside them."""

    name: str
    file_bytes: int
    kept: bool


@dataclass(frozen=True)
class Options:
    """How the files are quantized: ``quantize`` are llama-quantize's options, ``text`` what an importance
    matrix is to be made from first (None: there is one, or none is wanted)."""

    quantize: QuantizeOptions
    text: Text | None = None


@dataclass(frozen=True)
class JobPlan:
    """What a run will do: bytes to download (``is_streamed``: the weights are not kept; ``shares_disk``: to
    the disk of ``outdir``), the 16-bit GGUF that it makes (None: it makes none), the files.
    ``makes_imatrix``: an imatrix is made first, and the sizes are those with it. ``kept_bytes``: of
    unfinished work that the run takes up.

    For the run: ``source`` is what the files are made from; ``without_file``: from the converter's stream,
    with no 16-bit GGUF on the disk; ``seen``: the manifest as it was.
    """

    model: str
    outdir: Path
    download_bytes: int
    base: PlannedBase | None
    files: tuple[PlannedFile, ...]
    free_bytes: int
    kept_bytes: int
    is_streamed: bool
    shares_disk: bool
    makes_imatrix: bool
    request: Request = field(metadata=INTERNAL)
    presets: tuple[Preset, ...] = field(metadata=INTERNAL)
    choice: AutoChoice | None = field(metadata=INTERNAL)
    options: Options = field(metadata=INTERNAL)
    source: GivenBase | BaseEstimate = field(metadata=INTERNAL)
    without_file: bool = field(metadata=INTERNAL)
    seen: Any = field(metadata=INTERNAL)

    @property
    def is_exact(self) -> bool:
        """Whether all sizes are to the byte."""
        return all(file.exact for file in self.files)

    @property
    def needed_bytes(self) -> int:
        """Disk that ``outdir`` must offer at the worst moment."""
        base_bytes = self.base.file_bytes if self.base else 0
        return base_bytes + sum(file.size.file_bytes for file in self.files if not file.made)

    @property
    def missing_bytes(self) -> int:
        """Of the disk of ``outdir``; 0: there is enough."""
        download_bytes = self.download_bytes if self.shares_disk else 0
        return max(0, self.needed_bytes + download_bytes - self.kept_bytes - self.free_bytes)

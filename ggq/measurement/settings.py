"""What `ggq bench` is asked for, and what its efforts (quick, standard, thorough) stand for."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from ggq.llamacpp import bench as llama_bench
from ggq.llamacpp.offload import ALL_LAYERS, Offload
from ggq.llamacpp.toolchain import Toolchain
from ggq.measurement.memory import LOAD_MODES, MemorySettings
from ggq.measurement.model_file import Subject
from ggq.measurement.quality import QualitySettings
from ggq.measurement.record import KINDS, Kind
from ggq.measurement.speed import SpeedSettings
from ggq.measurement.throughput import Precision

# A depth is measured where so many tokens have room after it.
_LEAST_ROOM = 256


@dataclass(frozen=True)
class TextChoice:
    """Which text quality is measured on (see ``corpus.resolve``), and whether its special tokens are parsed:
    ``parse_special``."""

    text: Path | None = None
    corpus: str | None = None
    corpus_path: Path | None = None
    offline: bool = False
    parse_special: bool = False


@dataclass(frozen=True)
class BenchSettings:
    """What to measure, and how.

    ``base``: the file that others are compared with; None: the widest one. ``within_context``: leave out
    contexts and depths that a model does not have, rather than refuse them.
    """

    kinds: tuple[Kind, ...] = KINDS
    base: Path | None = None
    text: TextChoice = field(default_factory=TextChoice)
    quality: QualitySettings = field(default_factory=QualitySettings)
    speed: SpeedSettings = field(default_factory=SpeedSettings)
    memory: MemorySettings = field(default_factory=MemorySettings)
    within_context: bool = False

    def for_model(self, found: Subject) -> BenchSettings:
        """These settings, less the contexts and depths that the model does not have, where that is wanted."""
        if not (self.within_context and found.context_length):
            return self
        most = found.context_length
        depths = tuple(depth for depth in self.speed.depths if depth + _LEAST_ROOM <= most) or (0,)
        contexts = tuple(context for context in self.memory.contexts if context <= most)
        return replace(
            self,
            quality=replace(self.quality, context=min(self.quality.context, most)),
            speed=replace(self.speed, depths=depths),
            memory=replace(self.memory, contexts=contexts),
        )


Effort = Literal["quick", "standard", "thorough"]


def offload_for(toolchain: Toolchain, n_gpu_layers: int | None, rpc: tuple[str, ...]) -> Offload:
    """The placement asked for; None: all layers on GPUs where llama.cpp sees one, else none.

    Raises ToolchainProblem when an RPC server cannot be reached.
    """
    if n_gpu_layers is None:
        n_gpu_layers = ALL_LAYERS if llama_bench.devices(toolchain, rpc) else 0
    return Offload(n_gpu_layers=n_gpu_layers, rpc=rpc)


def settings_for(
    effort: Effort,
    toolchain: Toolchain,
    *,
    n_gpu_layers: int | None = None,
    rpc: tuple[str, ...] = (),
    threads: int | None = None,
) -> BenchSettings:
    """Settings for an effort. ``n_gpu_layers``: -1 for all; None: all where there is a GPU."""
    offload = offload_for(toolchain, n_gpu_layers, rpc)
    quality = QualitySettings(threads=threads, offload=offload)
    speed = SpeedSettings(threads=threads, n_gpu_layers=(offload.n_gpu_layers,), rpc=rpc)
    memory = MemorySettings(load_modes=("mmap",), threads=threads, offload=offload)
    if effort == "quick":
        quality = replace(quality, max_chunks=24)
        speed = replace(speed, quick=True, binding=False, precision=Precision(most=6, most_seconds=10))
        memory = replace(memory, contexts=(512,))
    elif effort == "thorough":
        quality = replace(quality, until="full")
        speed = replace(speed, depths=(0, 1024, 4096), threads=threads or "auto")
        memory = replace(
            memory,
            contexts=(512, 4096, 16384),
            cache_types=(("f16", "f16"), ("q8_0", "q8_0")),
            load_modes=LOAD_MODES,
        )
    return BenchSettings(quality=quality, speed=speed, memory=memory, within_context=True)

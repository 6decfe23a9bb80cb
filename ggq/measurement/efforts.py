"""The efforts of `ggq bench` without a word, and what they stand for."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated

from ggq.errors import UsageProblem
from ggq.llamacpp.toolchain import Toolchain
from ggq.llamacpp.words import CacheType
from ggq.measurement.settings import (
    THREADS,
    BenchSettings,
    MemorySettings,
    Placement,
    QualitySettings,
    SpeedSettings,
    TextChoice,
)
from ggq.measurement.throughput import Precision
from ggq.measurement.words import MeasuredLoadMode
from ggq.settings import Option


@dataclass(frozen=True)
class EverythingSettings:
    """``ggq bench`` without a word: how long it may take, and what holds for all that it measures."""

    quick: Annotated[bool, Option("--quick", help="Minutes: fewer chunks, shorter runs.")] = False
    thorough: Annotated[
        bool,
        Option("--thorough", help="Hours: the whole text, depths, contexts and types of cache."),
    ] = False
    text: TextChoice = field(default_factory=TextChoice)
    placement: Placement = field(default_factory=Placement)
    threads: Annotated[int | None, THREADS] = None

    def settings(self, toolchain: Toolchain) -> BenchSettings:
        """The settings of each measurement. Raises UsageProblem for two efforts, ToolchainProblem."""
        if self.quick and self.thorough:
            raise UsageProblem("--quick and --thorough exclude each other.", "", "Leave one of them out.")
        placement = Placement(exactly=self.placement.offload(toolchain))
        offload = placement.offload(toolchain)
        quality = QualitySettings(threads=self.threads, placement=placement)
        speed = SpeedSettings(threads=self.threads, n_gpu_layers=(offload.n_gpu_layers,), rpc=offload.rpc)
        memory = MemorySettings(
            load_modes=(MeasuredLoadMode.MMAP,), threads=self.threads, placement=placement
        )
        if self.quick:
            quality = replace(quality, max_chunks=24)
            speed = replace(speed, quick=True, binding=False, precision=Precision(most=6, most_seconds=10))
            memory = replace(memory, contexts=(512,))
        elif self.thorough:
            quality = replace(quality, full=True)
            speed = replace(speed, depths=(0, 1024, 4096), threads=self.threads or "auto")
            memory = replace(
                memory,
                contexts=(512, 4096, 16384),
                types_k=(CacheType.F16, CacheType.Q8_0),
                load_modes=tuple(MeasuredLoadMode),
            )
        return BenchSettings(text=self.text, quality=quality, speed=speed, memory=memory, within_context=True)

"""What runs of hollow models took on this machine, kept as long as the machine stays what it was.

The timings belong to a CPU, its cores, a toolchain, a state of power; and to a probe, a few milliseconds of
work that is done again before they are used. A laptop that went on battery, or shares its cores with
something else now, measures again.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggq.llamacpp.threads import ThreadChoice
from ggq.llamacpp.toolchain import Toolchain
from ggq.records.memo import Memo
from ggq.system import hardware

_PROBE = "seconds of the probe"
_PROBE_BYTES, _PROBE_TIMES = 32 << 20, 7
# Generation is bound by memory, and so is the probe.
_TOLERANCE = 1.3


@dataclass(frozen=True)
class Timings:
    """Seconds per token, a sample for each repetition; () for what was not run."""

    prompt_s: tuple[float, ...] = ()
    generation_s: tuple[float, ...] = ()


class Calibration:
    """The timings kept in a file, if they are of this machine as it is now."""

    def __init__(self, file: Path, toolchain: Toolchain) -> None:
        self._memo = Memo(file, {**build_and_cpu(toolchain), "power": hardware.power_state()})
        now_s = probe_s()
        before_s = self._memo.find(_PROBE, float) or now_s
        if not before_s / _TOLERANCE <= now_s <= before_s * _TOLERANCE:
            self._memo.forget()
        self._memo.get(_PROBE, float, lambda: now_s)

    def __contains__(self, key: str) -> bool:
        return key in self._memo

    def __getitem__(self, key: str) -> Timings:
        found = self._memo.find(key, Timings)
        if found is None:
            raise KeyError(key)
        return found

    def add(self, key: str, more: Timings) -> None:
        before = self[key] if key in self else Timings()
        both = Timings((*before.prompt_s, *more.prompt_s), (*before.generation_s, *more.generation_s))
        self._memo.put(key, both)

    def threads(self, key: str, choose: Callable[[], ThreadChoice]) -> ThreadChoice:
        """A choice of threads, made once."""

        def ask() -> tuple[int, int]:
            chosen = choose()
            return chosen.prompt, chosen.generation

        prompt, generation = self._memo.get(key, tuple[int, int], ask)
        return ThreadChoice(prompt, generation)

    def save(self) -> None:
        """Raises OutputProblem, DiskFull."""
        self._memo.save()


def build_and_cpu(toolchain: Toolchain) -> dict[str, Any]:
    """What buffers and kernels hang on: the processor and the build of llama.cpp."""
    return {
        "cpu": hardware.cpu_name(),
        "instruction_sets": list(hardware.instruction_sets()),
        "usable_cores": hardware.usable_cores(),
        "llama_cpp": toolchain.commit,
        "flags": list(toolchain.build.cmake_flags) if toolchain.build else None,
    }


def probe_s() -> float:
    """Seconds that a copy beyond the CPU's cache takes: the median of a few."""
    import numpy as np

    source = np.ones(_PROBE_BYTES, np.uint8)
    target = np.empty_like(source)
    taken = []
    for _ in range(_PROBE_TIMES):
        started = time.perf_counter()
        np.copyto(target, source)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[1:])  # the first one asks the system for the memory

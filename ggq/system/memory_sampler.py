"""The memory of a child process while it runs, and of NVIDIA GPUs meanwhile: sampled, the peaks kept."""

from __future__ import annotations

import re
import shutil
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from ggq.system import process

_SHORTEST_PAUSE_S = 0.01
_LONGEST_PAUSE_S = 0.25
_REST = 10  # a pause is so many times as long as the sample before it: the kernel walks all pages for one


# It is asked many times a second.
_UNHEARD = process.Watch(echo=False)


@dataclass(frozen=True)
class MemoryPeaks:
    """The highest values that were seen of one process, each at its own moment; 0 where none was seen.

    ``resident_bytes``: all its pages in RAM; ``anonymous_bytes``: memory of its own, which the system cannot
    take back, what it has swapped out included; ``file_bytes``: pages of mapped files, which are the system's
    cache and can be taken back; ``shared_bytes``: memory shared without a file. None where the system does
    not tell: only Linux does.
    """

    resident_bytes: int = 0
    anonymous_bytes: int | None = None
    file_bytes: int | None = None
    shared_bytes: int | None = None


@dataclass(frozen=True)
class GpuPeak:
    """``used_bytes``: how much more of an NVIDIA GPU's memory was in use at the peak than at the start, by
    whatever program. ``index`` and ``name`` are nvidia-smi's."""

    index: int
    name: str
    used_bytes: int


class _Sampler(ABC):
    """A thread that takes samples from ``_begin`` until the ``with`` block ends, or there is nothing more."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def _begin(self) -> None:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            started = time.monotonic()
            if not self._sample():
                return
            pause = _REST * (time.monotonic() - started)
            if self._over.wait(min(max(pause, _SHORTEST_PAUSE_S), _LONGEST_PAUSE_S)):
                return

    @abstractmethod
    def _sample(self) -> bool:
        """Take one; False ends it."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()


class ProcessSampler(_Sampler):
    """Of one process: ``with ProcessSampler() as memory: run(…, watch=Watch(on_start=memory.watch))``.

    ``look``, as ``on_stdout``, takes a sample at each line: of a process that is over within milliseconds,
    the last one comes when all is done and nothing freed yet.
    """

    def __init__(self) -> None:
        super().__init__()
        self._pid = 0
        self._one_at_a_time = threading.Lock()
        self.peaks = MemoryPeaks()

    def __enter__(self) -> ProcessSampler:
        return self

    def watch(self, pid: int) -> None:
        self._pid = pid
        self._begin()

    def look(self, _line: str = "") -> None:
        self._sample()

    def _sample(self) -> bool:
        with self._one_at_a_time:
            now = _of_process(self._pid)
            if now is None:
                return False
            self.peaks = MemoryPeaks(
                resident_bytes=max(self.peaks.resident_bytes, now.resident_bytes),
                anonymous_bytes=_highest(self.peaks.anonymous_bytes, now.anonymous_bytes),
                file_bytes=_highest(self.peaks.file_bytes, now.file_bytes),
                shared_bytes=_highest(self.peaks.shared_bytes, now.shared_bytes),
            )
            return True


class GpuSampler(_Sampler):
    """Of all NVIDIA GPUs while the block runs; ``peaks`` is empty where there is none."""

    def __init__(self) -> None:
        super().__init__()
        self._start: dict[tuple[int, str], int] = {}
        self._peak: dict[tuple[int, str], int] = {}

    def __enter__(self) -> GpuSampler:
        self._start = _of_gpus()
        if self._start:
            self._begin()
        return self

    def _sample(self) -> bool:
        for gpu, used in _of_gpus().items():
            self._peak[gpu] = max(used, self._peak.get(gpu, 0))
        return True

    @property
    def peaks(self) -> tuple[GpuPeak, ...]:
        return tuple(
            GpuPeak(*gpu, max(0, self._peak.get(gpu, start) - start)) for gpu, start in self._start.items()
        )


def gpu_memory_bytes(lines: Iterable[str]) -> dict[tuple[int, str], int]:
    """``0, NVIDIA H200, 451`` (index, name, MiB) -> {(0, "NVIDIA H200"): 472907776}.

    A GPU that keeps its memory to itself (``[N/A]``, as where it is partitioned) is left out.
    """
    matches = [re.fullmatch(r"(\d+), (.*), (\d+)", line.strip()) for line in lines]
    return {(int(found[1]), found[2]): int(found[3]) << 20 for found in matches if found}


def nvidia_driver() -> str | None:
    """The NVIDIA driver's version, or None where there is none."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    said = process.run(query, check=False, timeout_s=30, watch=_UNHEARD).stdout
    return said[0].strip() if said and re.fullmatch(r"[\d.]+", said[0].strip()) else None


def _of_gpus() -> dict[tuple[int, str], int]:
    if shutil.which("nvidia-smi") is None:
        return {}
    query = ["nvidia-smi", "--query-gpu=index,name,memory.used", "--format=csv,noheader,nounits"]
    return gpu_memory_bytes(process.run(query, check=False, timeout_s=30, watch=_UNHEARD).stdout)


def _of_process(pid: int) -> MemoryPeaks | None:
    """Its memory now; None when it has ended."""
    import psutil

    try:
        # The counters in /proc/PID/status are wrong by megabytes on many cores (proc(5)), but one of them is
        # the process's own high-water mark, which misses nothing between two samples.
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
        mark = re.search(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text("utf-8"), re.MULTILINE)
    except OSError:
        try:
            resident = int(psutil.Process(pid).memory_info().rss)
        except psutil.Error:
            return None
        return MemoryPeaks(resident) if resident else None
    sizes = {name: int(value) << 10 for name, value in re.findall(r"^(\w+): +(\d+) kB$", text, re.MULTILINE)}
    own, shared = sizes["Anonymous"], sizes.get("Pss_Shmem", 0)
    return MemoryPeaks(
        resident_bytes=max(sizes["Rss"], int(mark[1]) << 10 if mark else 0),
        anonymous_bytes=own + sizes["Swap"],
        file_bytes=max(0, sizes["Rss"] - own - shared),
        shared_bytes=shared,
    )


def _highest(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else max(one, other)

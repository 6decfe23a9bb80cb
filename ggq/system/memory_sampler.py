"""The memory of a child process while it runs, and of NVIDIA GPUs meanwhile: sampled, the peaks kept."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

_SHORTEST_PAUSE_S = 0.01
_LONGEST_PAUSE_S = 0.25
_REST = 10  # a pause is so many times as long as the sample before it: the kernel walks all pages for one


# It is asked many times a second.


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
    whatever program; ``process_bytes``: by the process alone, None where the driver does not tell. ``index``
    and ``name`` are the driver's."""

    index: int
    name: str
    used_bytes: int
    process_bytes: int | None = None

    @property
    def own_bytes(self) -> int:
        """The process's, or the best that is known of it."""
        return self.used_bytes if self.process_bytes is None else self.process_bytes


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
    """Of all NVIDIA GPUs while the block runs; ``peaks`` is empty where there is none. With ``watch``, of one
    process besides: ``Watch(on_start=gpus.watch)``."""

    def __init__(self) -> None:
        super().__init__()
        self._pid: int | None = None
        self._driver = ExitStack()  # open meanwhile, so that a sample takes no time for that
        self._start: dict[_Gpu, int] = {}
        self._peak: dict[_Gpu, int] = {}
        self._process_peak: dict[_Gpu, int] = {}

    def __enter__(self) -> GpuSampler:
        self._driver.enter_context(_nvml())
        self._start = {gpu: used for gpu, (used, _) in _of_gpus(None).items()}
        if self._start:
            self._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._driver.close()

    def watch(self, pid: int) -> None:
        self._pid = pid

    def _sample(self) -> bool:
        for gpu, (used, own) in _of_gpus(self._pid).items():
            self._peak[gpu] = max(used, self._peak.get(gpu, 0))
            if own is not None:
                self._process_peak[gpu] = max(own, self._process_peak.get(gpu, 0))
        return True

    @property
    def peaks(self) -> tuple[GpuPeak, ...]:
        return tuple(
            GpuPeak(*gpu, max(0, self._peak.get(gpu, start) - start), self._process_peak.get(gpu))
            for gpu, start in self._start.items()
        )


_Gpu = tuple[int, str]  # index and name


def nvidia_driver() -> str | None:
    """The NVIDIA driver's version, or None where there is none."""
    with _nvml() as nvml:
        return str(nvml.nvmlSystemGetDriverVersion()) if nvml else None


def _of_gpus(pid: int | None) -> dict[_Gpu, tuple[int, int | None]]:
    """Memory in use, in all and by a process (None: it is not told), of each GPU that tells."""
    found: dict[_Gpu, tuple[int, int | None]] = {}
    with _nvml() as nvml:
        for index in range(nvml.nvmlDeviceGetCount() if nvml else 0):
            # A GPU that keeps its memory to itself (as where it is partitioned) is left out.
            with contextlib.suppress(nvml.NVMLError):
                gpu = nvml.nvmlDeviceGetHandleByIndex(index)
                used = int(nvml.nvmlDeviceGetMemoryInfo(gpu).used)
                found[index, str(nvml.nvmlDeviceGetName(gpu))] = used, _of_process_on(nvml, gpu, pid)
    return found


def _of_process_on(nvml: Any, gpu: Any, pid: int | None) -> int | None:
    """What a process has of a GPU; None where the driver does not say, as in a container that numbers
    processes by itself."""
    with contextlib.suppress(nvml.NVMLError):
        for it in nvml.nvmlDeviceGetComputeRunningProcesses(gpu):
            if it.pid == pid and it.usedGpuMemory is not None:
                return int(it.usedGpuMemory)
    return None


@contextlib.contextmanager
def _nvml() -> Iterator[Any]:
    """NVIDIA's management library, ready; None where there is no driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


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

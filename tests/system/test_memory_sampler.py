"""The sampler against processes whose memory is known."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest

from ggq.system import process
from ggq.system.memory_sampler import GpuPeak, GpuSampler, MemoryPeaks, ProcessSampler, nvidia_driver

MIB = 1 << 20
linux_only = pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="this system is not Linux"
)


def peaks(code: str, *arguments: str) -> MemoryPeaks:
    with ProcessSampler() as memory:
        process.run([sys.executable, "-c", code, *arguments], watch=process.Watch(on_start=memory.watch))
    return memory.peaks


@pytest.mark.slow
@linux_only
def test_memory_of_its_own_and_of_a_mapped_file_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * (64 * MIB))
    idle = peaks("import mmap, sys, time; time.sleep(0.1)")
    own = peaks("import time; held = b'x' * (96 << 20); time.sleep(0.1)")
    mapped = peaks(
        "import mmap, sys, time\n"
        "with open(sys.argv[1], 'rb') as stream: file = mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ)\n"
        "touched = sum(file[at] for at in range(0, len(file), 4096)); time.sleep(0.1)",
        str(tmp_path / "file"),
    )
    for sample in (idle, own, mapped):
        assert sample.anonymous_bytes is not None
        assert sample.file_bytes is not None
    assert own.anonymous_bytes - idle.anonymous_bytes == pytest.approx(96 * MIB, rel=0.05)  # type: ignore[operator]
    assert abs(own.file_bytes - idle.file_bytes) < 8 * MIB  # type: ignore[operator]
    assert mapped.file_bytes - idle.file_bytes == pytest.approx(64 * MIB, rel=0.1)  # type: ignore[operator]
    assert abs(mapped.anonymous_bytes - idle.anonymous_bytes) < 8 * MIB  # type: ignore[operator]
    assert own.resident_bytes > 96 * MIB


@linux_only
def test_the_peak_is_kept_when_the_memory_is_given_back() -> None:
    found = peaks("import time; held = b'x' * (96 << 20); time.sleep(0.2); del held; time.sleep(0.3)")
    assert (found.anonymous_bytes or 0) > 96 * MIB


def test_a_process_that_ended_at_once_leaves_a_sampler_in_order() -> None:
    assert peaks("").resident_bytes >= 0


def test_where_nothing_runs_there_is_no_peak() -> None:
    with ProcessSampler() as memory:
        pass
    assert memory.peaks == MemoryPeaks()


# NVIDIA's library needs a GPU: here its functions answer as the real ones do.
def nvidia(monkeypatch: pytest.MonkeyPatch, used: dict[str, int], own: int | None) -> None:
    """A machine with an H200, whose memory in use is ``used["MiB"]``, and a GPU that does not tell."""

    def memory_of(gpu: int) -> SimpleNamespace:
        if gpu == 1:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return SimpleNamespace(used=used["MiB"] * MIB)

    def processes_on(gpu: int) -> list[SimpleNamespace]:
        there = [SimpleNamespace(pid=1, usedGpuMemory=7 * MIB)]
        mine = [SimpleNamespace(pid=os.getpid(), usedGpuMemory=own)]
        return there + mine

    answers = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlSystemGetDriverVersion": lambda: "575.57.08",
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetName": lambda gpu: "NVIDIA H200",
        "nvmlDeviceGetMemoryInfo": memory_of,
        "nvmlDeviceGetComputeRunningProcesses": processes_on,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, name, answer)


@pytest.mark.parametrize(("own", "known"), [(600 * MIB, 600 * MIB), (None, None)])
def test_the_gpus_peak_is_told_above_the_start_and_of_the_process(
    monkeypatch: pytest.MonkeyPatch, own: int | None, known: int | None
) -> None:
    used = {"MiB": 400}
    nvidia(monkeypatch, used, own)
    assert nvidia_driver() == "575.57.08"
    with GpuSampler() as gpus:
        gpus.watch(os.getpid())
        used["MiB"] = 1424
        deadline = time.monotonic() + 60
        while gpus.peaks[0].used_bytes == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        used["MiB"] = 300
    [peak] = gpus.peaks
    assert peak == GpuPeak(0, "NVIDIA H200", 1024 * MIB, known)
    assert peak.own_bytes == (known or 1024 * MIB)


def test_without_a_gpu_there_is_no_figure() -> None:
    """By the library's own error where this machine has no driver."""
    with GpuSampler() as gpus:
        pass
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        assert gpus.peaks == () and nvidia_driver() is None
    else:
        pynvml.nvmlShutdown()
        assert nvidia_driver()

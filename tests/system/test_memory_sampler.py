"""The sampler against processes whose memory is known."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from ggq.system import process
from ggq.system.memory_sampler import GpuPeak, GpuSampler, MemoryPeaks, ProcessSampler, gpu_memory_bytes

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


# nvidia-smi needs a GPU: here a script of that name prints what the real one does.
def test_the_words_of_nvidia_smi() -> None:
    lines = ["0, NVIDIA H200, 451", "1, NVIDIA GeForce RTX 3060, 0", "2, NVIDIA A100, [N/A]", ""]
    assert gpu_memory_bytes(lines) == {(0, "NVIDIA H200"): 451 * MIB, (1, "NVIDIA GeForce RTX 3060"): 0}


def test_the_gpus_peak_is_told_above_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = tmp_path / "used"
    used.write_text("400")
    script = tmp_path / "nvidia-smi"
    script.write_text(f'#!/bin/sh\necho "0, NVIDIA H200, $(cat {used})"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with GpuSampler() as gpus:
        used.write_text("1424")
        time.sleep(1)
        used.write_text("300")
        time.sleep(1)
    assert gpus.peaks == (GpuPeak(0, "NVIDIA H200", 1024 * MIB),)


def test_without_a_gpu_there_is_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with GpuSampler() as gpus:
        pass
    assert gpus.peaks == ()

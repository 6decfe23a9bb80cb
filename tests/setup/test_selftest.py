"""The self-test is real: every type is quantized and evaluated, and a tool that fails is not forgiven."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from ggq.errors import ToolchainProblem, ToolFailed
from ggq.llamacpp import tools
from ggq.llamacpp.toolchain import Toolchain
from ggq.progress import Event, Step
from ggq.setup import selftest

pytestmark = pytest.mark.tool


def test_this_build_passes(toolchain: Toolchain) -> None:
    events: list[Event] = []
    assert selftest.run(toolchain, events.append) == dict.fromkeys(selftest.TYPES, "ok")
    assert events[-1] == Step("self-test", len(selftest.TYPES), len(selftest.TYPES), "types")


def test_the_tiny_model_takes_every_type_without_falling_back(toolchain: Toolchain, tmp_path: Path) -> None:
    selftest.write_tiny_model(tmp_path / "tiny.gguf")
    for ftype in selftest.TYPES:
        assert tools.quantize_plan(toolchain, tmp_path / "tiny.gguf", ftype).fallbacks == ()


def with_bench(toolchain: Toolchain, folder: Path, script: str) -> Toolchain:
    """The same tools, but for a llama-bench that does what ``script`` says."""
    for tool in toolchain.bin_dir.iterdir():
        (folder / tool.name).symlink_to(tool)
    (folder / "llama-bench").unlink()
    (folder / "llama-bench").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "llama-bench").chmod(0o755)
    return Toolchain("named", folder, folder, None, None)


@pytest.mark.parametrize("name", ["ILL", "SEGV"])
def test_a_crash_by_signal_is_told_as_one(name: str, toolchain: Toolchain, tmp_path: Path) -> None:
    with pytest.raises(ToolFailed) as caught:
        selftest.run(with_bench(toolchain, tmp_path, f"kill -{name} $$"))
    assert caught.value.returncode == -getattr(signal, f"SIG{name}")


@pytest.mark.parametrize("script", ["exit 0", "echo '{\"avg_ts\": 1}'", "exit 3"])
def test_a_tool_that_says_too_little_has_failed(script: str, toolchain: Toolchain, tmp_path: Path) -> None:
    with pytest.raises(ToolFailed):
        selftest.run(with_bench(toolchain, tmp_path, script))


def test_a_build_without_a_tool_says_which(toolchain: Toolchain, tmp_path: Path) -> None:
    incomplete = with_bench(toolchain, tmp_path, "exit 0")
    (tmp_path / "llama-bench").chmod(0o400)
    with pytest.raises(ToolchainProblem, match="llama-bench is missing"):
        selftest.run(incomplete)

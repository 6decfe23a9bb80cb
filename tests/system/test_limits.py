"""Limits of a shell: told as what they are."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from pathlib import Path

import pytest

from ggq.conversion import converter_errors
from ggq.errors import ToolchainProblem, ToolFailed
from ggq.system import limits, process


def test_a_limit_of_processor_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "ulimit -t" in str(ToolFailed(["llama-bench"], -signal.SIGXCPU, []))
    monkeypatch.setattr(limits, "processor_seconds", lambda: 3.0)
    told = str(converter_errors.died("convert", -signal.SIGKILL, []))
    assert "ulimit -t" in told and "3 s" in told and "memory" in told


def test_without_a_limit_a_kill_is_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "processor_seconds", lambda: float("inf"))
    assert "memory runs out" in str(converter_errors.died("convert", -signal.SIGKILL, []))
    assert limits.why_killed(signal.SIGKILL) is None and limits.why_killed(signal.SIGSEGV) is None


def test_memory_that_runs_out_while_the_child_starts() -> None:
    assert "Memory ran out" in str(converter_errors.died("", 1, ["MemoryError"]))
    assert "Memory ran out" in str(
        converter_errors.died("", 1, ["ImportError: x.so: failed to map segment from it"])
    )


def test_a_file_that_grows_beyond_its_limit() -> None:
    assert "ulimit -f" in str(ToolFailed(["llama-quantize"], -signal.SIGXFSZ, []))


def test_no_more_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(subprocess, "Popen", refused)
    with pytest.raises(ToolchainProblem, match="ulimit -u"):
        process.run([Path("/bin/true")])

"""SIGTERM ends ggq in order: with words, its children, and the exit code that shells know."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from ctrl_c import heed_ctrl_c


@pytest.mark.tool
def test_sigterm_is_told_and_leaves_nothing(example: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ggq", "convert", example, "-o", tmp_path / "x.gguf"]
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, preexec_fn=heed_ctrl_c, env=env
    ) as running:
        end = time.monotonic() + 60
        while not (children := psutil.Process(running.pid).children(recursive=True)):
            assert time.monotonic() < end
            time.sleep(0.02)
        running.send_signal(signal.SIGTERM)
        _, words = running.communicate(timeout=60)
    assert running.returncode == 143
    assert "Ended by SIGTERM" in words and "Traceback" not in words
    psutil.wait_procs(children, timeout=10)
    assert not any(child.is_running() for child in children)
    assert not list(tmp_path.glob("ggq-*")) and not (tmp_path / "x.gguf").exists()

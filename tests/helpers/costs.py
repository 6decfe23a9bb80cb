"""What a command costs: the peak of its whole process tree, and its seconds.

    done = costs.measure([sys.executable, "-m", "ggq", "inspect", "model"])
    assert done.peak_bytes < 500_000_000

As a program: ``python tests/helpers/costs.py ggq inspect model``.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psutil

_PERIOD_S = 0.02


@dataclass(frozen=True)
class Cost:
    """``peak_bytes``: memory of all processes at a time, shared pages counted as often as they are mapped (so
    from above); ``output``: stdout and stderr; ``returncode`` None: killed after ``timeout``."""

    returncode: int | None
    output: str
    peak_bytes: int
    seconds: float


def measure(command: Sequence[str], env: Mapping[str, str] | None = None, timeout: float = 60) -> Cost:
    with tempfile.TemporaryFile() as printed:
        started = time.monotonic()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=printed, stderr=printed, env=env)
        peak, over = 0, threading.Event()

        def watch() -> None:
            nonlocal peak
            while not over.wait(_PERIOD_S):
                peak = max(peak, _tree_bytes(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            returncode: int | None = process.wait(timeout)
        except subprocess.TimeoutExpired:
            returncode = None
            for part in [*_tree(process.pid)[::-1]]:
                part.kill()
            process.wait()
        finally:
            over.set()
            watcher.join()
        seconds = time.monotonic() - started
        printed.seek(0)
        return Cost(returncode, printed.read().decode("utf-8", "replace"), peak, seconds)


def _tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []


def _tree_bytes(pid: int) -> int:
    total = 0
    for part in _tree(pid):
        try:
            total += part.memory_info().rss
        except psutil.Error:
            continue
    return total


if __name__ == "__main__":
    done = measure(sys.argv[1:])
    sys.stdout.write(done.output)
    sys.stdout.write(f"exit {done.returncode}, peak {done.peak_bytes / 1e6:.0f} MB, {done.seconds:.1f} s\n")

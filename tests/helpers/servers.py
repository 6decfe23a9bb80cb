"""`ggq serve` as a process, until it is ready; ended with the block."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from ctrl_c import heed_ctrl_c

# Generous: a busy machine loads slowly. Whatever works is far quicker.
READY_S = 180


@dataclass
class Serving:
    """``told``: what ``--json`` says when it is ready."""

    process: subprocess.Popen[str]
    told: dict[str, Any]

    @property
    def url(self) -> str:
        return str(self.told["url"])

    def family(self) -> list[psutil.Process]:
        """llama-server, and what it started."""
        return psutil.Process(self.process.pid).children(recursive=True)


@contextmanager
def serving(*arguments: str | Path, env: dict[str, str] | None = None) -> Iterator[Serving]:
    """Raises AssertionError with its words when it ends before it is ready."""
    command = [sys.executable, "-m", "ggq", "serve", *map(str, arguments), "--port", "0", "--json"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
        preexec_fn=heed_ctrl_c,
    )
    guard = _Guard(process)
    try:
        with guard:
            told = _value(process)
        yield Serving(process, told)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


class _Guard:
    """Kills a process that is not ready in time, so that nobody reads from it for ever."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        import threading

        self._timer = threading.Timer(READY_S, process.kill)

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()


def _value(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The JSON object on its stdout."""
    assert process.stdout is not None and process.stderr is not None
    text = ""
    for line in process.stdout:
        text += line
        if line.startswith("}"):
            found: dict[str, Any] = json.loads(text)
            if "error" in found:
                break
            return found
    raise AssertionError(f"it ended: {text}{process.stderr.read()}")

"""ggq in a pseudo-terminal, as a person sees it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pexpect

# A busy machine is slow; nothing here waits so long where it works.
TIMEOUT_S = 120


@contextmanager
def terminal(*arguments: str | Path, columns: int = 100) -> Iterator[pexpect.spawn[str]]:
    """The command, running; ended with the block, whatever it does."""
    env = {**os.environ, "TERM": "dumb", "PYTHONUNBUFFERED": "1"}
    # Started from a job of a shell's that ignores Ctrl-C, it would ignore it, too.
    child = pexpect.spawn(
        sys.executable,
        ["-m", "ggq", *map(str, arguments)],
        env=env,
        timeout=TIMEOUT_S,
        encoding="utf-8",
        dimensions=(40, columns),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,  # type: ignore[arg-type]
    )
    try:
        yield child
    finally:
        child.close(force=True)

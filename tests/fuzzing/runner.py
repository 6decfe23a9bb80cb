"""One case in a fork of its own, everything imported: what it said, what it took, what it left."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

TIMEOUT_S = 60.0
_MOST_ADDRESSES = 16 << 30  # of one process: a request for more is refused at once
_NOISE = re.compile(rb"GGML_ASSERT|ggml_abort|ggml_backtrace|terminate called|\(gdb\)|ptrace: |Core dumped")


@dataclass(frozen=True)
class Outcome:
    """How a case ended. ``peak_bytes``: of the largest of the process and its children."""

    exit_code: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    stdout: bytes
    stderr: bytes
    left: tuple[str, ...]

    @property
    def said(self) -> bytes:
        return self.stdout + self.stderr

    def faults(self, limit_s: float, limit_bytes: int) -> list[str]:
        """What is wrong with it."""
        found = []
        if self.exit_code not in (0, 1, 2, 3):
            found.append("hang" if self.exit_code == -signal.SIGKILL else f"exit code {self.exit_code}")
        if b"Traceback (most recent call last)" in self.said:
            found.append("traceback")
        if b"something that it does not know" in self.said:
            found.append("catch-all")
        if b"Report this" in self.said or b"eport what it prints" in self.said:
            found.append("report this")
        if _NOISE.search(self.said):
            found.append("raw abort")
        if b"\x1b" in self.said or b"\x07" in self.said:
            found.append("terminal escape")
        if self.exit_code and not self.stderr.strip():
            found.append("no words")
        if self.exit_code and self.left:
            found.append("partial file")
        # Others may use this machine: waiting for a processor is not the case's own doing.
        if self.cpu_seconds > limit_s or self.seconds > 3 * limit_s:
            found.append("slow")
        if self.peak_bytes > limit_bytes:
            found.append("memory")
        return found


def run(command: Sequence[str], folder: Path, before: Callable[[], None]) -> Outcome:
    """Run ``ggq`` with these arguments in a fork that stands in ``folder``; ``before`` prepares it there."""
    kept = _finished(folder)
    started = time.monotonic()
    process = os.fork()
    if process == 0:
        _become(command, folder, before)
    _, status, usage = _wait(process)
    seconds = time.monotonic() - started
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process, signal.SIGKILL)
    return Outcome(
        os.waitstatus_to_exitcode(status),
        seconds,
        usage.ru_utime + usage.ru_stime,
        usage.ru_maxrss * 1024,
        (folder / "stdout").read_bytes(),
        (folder / "stderr").read_bytes(),
        tuple(sorted(_finished(folder) - kept)),
    )


def _finished(folder: Path) -> set[str]:
    """Models under a final name."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*.gguf")
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and "cache" not in path.parts
    }


def _wait(process: int) -> tuple[int, int, resource.struct_rusage]:
    until = time.monotonic() + TIMEOUT_S
    pause = 0.002
    while True:
        found = os.wait4(process, os.WNOHANG)
        if found[0]:
            return found
        if time.monotonic() > until:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process, signal.SIGKILL)
            return os.wait4(process, 0)
        time.sleep(pause)
        pause = min(pause * 1.3, 0.05)


def _become(command: Sequence[str], folder: Path, before: Callable[[], None]) -> None:
    """The child: never returns."""
    code = 98
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_AS, (_MOST_ADDRESSES, _MOST_ADDRESSES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for number, name, flags in (
            (0, os.devnull, os.O_RDONLY),
            (1, str(folder / "stdout"), os.O_WRONLY | os.O_CREAT),
            (2, str(folder / "stderr"), os.O_WRONLY | os.O_CREAT),
        ):
            os.dup2(os.open(name, flags, 0o644), number)
        os.chdir(folder)
        before()
        sys.argv = ["ggq", *command]
        from ggq.cli.main import main

        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1 if end.code else 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        code = 99
    finally:
        os._exit(code)

"""The one way ggq runs a child process: lines as they come, a signal as a finding, no orphans."""

from __future__ import annotations

import codecs
import contextlib
import ctypes
import errno
import gc
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ggq.errors import ToolchainProblem, ToolFailed

LineHandler = Callable[[str], None]
_TAIL_LINES, _TAIL_COLUMNS = 12, 300
_ABORT_LINES = 3
_KEEP_LINES = 20_000

# Every command and every line of its output, as debug messages (``-v``).
LOG = "ggq.tools"
_log = logging.getLogger(LOG)


@dataclass(frozen=True)
class Watch:
    """Who follows a child. Each handler of a stream gets every line as it comes; a carriage return ends a
    line too, so that a progress bar can be followed. ``on_start`` gets the process id. Without ``echo``
    nothing goes to ``LOG``."""

    on_stdout: LineHandler | None = None
    on_stderr: LineHandler | None = None
    on_start: Callable[[int], None] | None = None
    echo: bool = True


_UNWATCHED = Watch()


@dataclass(frozen=True)
class Completed:
    """A child that has ended. ``returncode`` is negative for a signal; ``peak_rss_bytes`` is the kernel's
    own high-water mark of the child; None where the platform does not tell, and where the child stayed below
    this process (the kernel begins its count with the memory of the process that forked). ``out_of_memory``:
    it died by SIGKILL, and the kernel counts a process killed for want of memory since it began."""

    command: tuple[str, ...]
    returncode: int
    stdout: tuple[str, ...]
    stderr: tuple[str, ...]
    seconds: float
    peak_rss_bytes: int | None
    out_of_memory: bool = False

    @property
    def tail(self) -> tuple[str, ...]:
        lines = [line for line in (*self.stdout, *self.stderr) if line.strip()]
        # What ends by SIGABRT says why just before; a log of loading comes before that.
        count = _TAIL_LINES if self.returncode != -signal.SIGABRT else _ABORT_LINES
        cut = (line if len(line) <= _TAIL_COLUMNS else f"{line[:_TAIL_COLUMNS]}…" for line in lines[-count:])
        return tuple(cut)

    def failed(self, next_step: str = "") -> ToolFailed:
        return ToolFailed(
            self.command, self.returncode, self.tail, next_step, out_of_memory=self.out_of_memory
        )


def run(
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: str | None = None,
    watch: Watch = _UNWATCHED,
    timeout_s: float | None = None,
    check: bool = True,
    grace_s: float = 5,
) -> Completed:
    """Run a command to its end.

    It runs in ``cwd``, or in the root folder: llama.cpp's tools load libraries of certain names from the
    current one, which may be a model's. So a ``Path`` in ``command`` is made absolute, and a path given as
    text must be. ``env`` is added to this process's environment. ``grace_s``: so long a child that must
    end may take to end in its own way.

    Raises ToolFailed when ``check`` and the child did not exit 0 (also on time-out, as SIGKILL),
    ToolchainProblem when the program cannot be started at all, and what a handler raised. Whatever is raised
    meanwhile, as on Ctrl-C, the child is ended first.
    """
    argv = tuple(str(part.absolute() if isinstance(part, Path) else part) for part in command)
    if watch.echo:
        _log.debug("$ %s", shlex.join(argv))
    started = time.monotonic()
    own_rss_bytes = _rss_bytes()
    oom_kills = _oom_kills()
    interrupts: list[int] = []
    try:
        with _holding_back(interrupts):
            child = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**_inherited(), **(env or {})},
                cwd=cwd or Path(sys.executable).anchor,
                preexec_fn=_in_own_group_and_dying_with_parent() if os.name == "posix" else None,
            )
    except (OSError, subprocess.SubprocessError, MemoryError, RuntimeError) as error:
        raise _not_started(argv[0], error) from error
    stdout: deque[str] = deque(maxlen=_KEEP_LINES)
    stderr: deque[str] = deque(maxlen=_KEEP_LINES)
    failures: list[BaseException] = []

    def read(stream: IO[bytes], lines: deque[str], handler: LineHandler | None) -> None:
        try:
            with stream:
                _read_lines(stream, lines, handler, watch.echo)
        except BaseException as failure:
            # Nobody reads on, and the child would wait for that for ever.
            failures.append(failure)
            _signal(child, signal.SIGKILL)

    readers = [
        threading.Thread(target=read, args=arguments, daemon=True)
        for arguments in ((child.stdout, stdout, watch.on_stdout), (child.stderr, stderr, watch.on_stderr))
    ]
    try:
        for reader in readers:
            try:
                reader.start()
            except (RuntimeError, MemoryError) as error:  # no more threads
                raise _not_started(argv[0], error) from error
        if interrupts:
            signal.raise_signal(interrupts[0])
            raise KeyboardInterrupt  # where its handler raises nothing
        if watch.on_start is not None:
            watch.on_start(child.pid)
        if child.stdin is not None:
            # A child that ended at once is told by how it ended. Closing writes what is left.
            with contextlib.suppress(BrokenPipeError):
                child.stdin.write((stdin or "").encode())
            with contextlib.suppress(BrokenPipeError):
                child.stdin.close()
        peak = _wait(child, timeout_s, own_rss_bytes)
    except BaseException:
        _end(child, grace_s)
        for stream, reader in zip((child.stdout, child.stderr), readers, strict=True):
            if stream is not None and reader.ident is None:  # a reader that has begun closes its own
                stream.close()
        raise
    for reader in readers:
        # A grandchild may hold the pipe open; the child itself is gone, so its words are here.
        reader.join(timeout=5)
    if failures:
        raise failures[0]
    done = Completed(
        argv,
        child.returncode,
        tuple(stdout),
        tuple(stderr),
        time.monotonic() - started,
        peak,
        out_of_memory=child.returncode == -signal.SIGKILL and _oom_kills() > oom_kills,
    )
    if check and done.returncode != 0:
        raise done.failed()
    return done


@contextlib.contextmanager
def _holding_back(interrupts: list[int]) -> Iterator[None]:
    """Note a Ctrl-C that comes while the block runs, for the caller to heed after it.

    Packages hook into a fork (os.register_at_fork), and what is raised in a hook is printed and forgotten: so
    would a Ctrl-C be that comes just then.
    """
    ours = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if ours else ()
    before = {number: handler for number in numbers if callable(handler := signal.getsignal(number))}
    for number in before:
        signal.signal(number, lambda number, _frame: interrupts.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _inherited() -> dict[str, str]:
    """The environment without LLAMA_ARG_*: with those llama.cpp's tools would do other than they are told.
    No debugger may write its noise behind a tool's last words."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LLAMA_ARG_")}
    return {"GGML_NO_BACKTRACE": "1", **kept}


def _not_started(program: str, error: Exception) -> ToolchainProblem:
    known = isinstance(error, OSError) and error.errno not in (errno.EAGAIN, errno.ENOMEM)
    if known:
        why, next_step = f"{getattr(error, 'strerror', None) or error}.", "Run `ggq doctor`."
    else:  # fork, a thread for its words, or what is done between fork and exec
        why = f"This system gives no more processes, threads or memory: {error or type(error).__name__}."
        next_step = "Close other programs, or raise the limits (`ulimit -u`, `ulimit -v`)."
    return ToolchainProblem(f"{program} could not be started.", why, next_step)


def _rss_bytes() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def _oom_kills(vmstat: Path = Path("/proc/vmstat")) -> int:
    """Processes that the kernel has killed for want of memory since it started; 0 where it does not tell."""
    with contextlib.suppress(OSError):
        for line in vmstat.read_text(encoding="utf-8").splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def _wait(child: subprocess.Popen[bytes], timeout_s: float | None, own_rss_bytes: int) -> int | None:
    """Wait for the child and return its peak resident bytes, if they can be told from our own."""
    timer = threading.Timer(timeout_s, _signal, (child, signal.SIGKILL)) if timeout_s else None
    if timer:
        timer.daemon = True
        timer.start()
    try:
        if not hasattr(os, "wait4"):
            child.wait()
            return None
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return peak if peak > own_rss_bytes else None
    finally:
        if timer:
            timer.cancel()


def _end(child: subprocess.Popen[bytes], grace_s: float) -> None:
    if child.returncode is not None:
        return
    _signal(child, signal.SIGTERM)
    try:
        child.wait(timeout=grace_s)
    except subprocess.TimeoutExpired:
        _signal(child, signal.SIGKILL)
        child.wait()


def end(process_id: int) -> None:
    """End a child that ``run`` started in another thread, and its own children with it."""
    with contextlib.suppress(ProcessLookupError):
        if os.name == "posix":
            os.killpg(process_id, signal.SIGKILL)
        else:
            os.kill(process_id, signal.SIGTERM)


def _signal(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """To the child's whole group: a compiler that the child started must not live on."""
    with contextlib.suppress(ProcessLookupError):
        if os.name == "posix":
            os.killpg(child.pid, number)
        else:
            child.send_signal(number)


def _read_lines(stream: IO[bytes], lines: deque[str], handler: LineHandler | None, echo: bool) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    rest = ""
    while True:
        block = os.read(stream.fileno(), 65536)
        rest += decoder.decode(block, final=not block)
        *whole, rest = re.split(r"\r\n|\n|\r", rest)
        if not block and rest:
            whole.append(rest)
        for line in whole:
            lines.append(line)
            if echo:
                _log.debug("%s", line)
            if handler is not None:
                handler(line)
        if not block:
            return


def _in_own_group_and_dying_with_parent() -> Callable[[], None]:
    """What the child does before it becomes the tool.

    Its own process group: Ctrl-C reaches ggq alone, which then ends the child in order. And on Linux the
    kernel ends the child when ggq dies, even by SIGKILL.
    """
    prctl: Any = None
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            prctl = ctypes.CDLL(None).prctl
    pr_set_pdeathsig = 1

    def hook() -> None:
        os.setpgid(0, 0)
        if prctl is not None:
            prctl(pr_set_pdeathsig, signal.SIGKILL)

    return hook


def give_back_memory() -> None:
    """Return to the system what this process no longer uses; glibc would keep it for later."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)

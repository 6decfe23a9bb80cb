"""What a person sees when something fails: words, an exit code, and a traceback only when asked for."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ggq.cli import streams
from ggq.cli.explain import explain
from ggq.cli.output import Output
from ggq.system import places

EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class Terminated(KeyboardInterrupt):
    """SIGTERM: it ends the command in the same order as Ctrl-C does."""


def _terminate(*_: Any) -> None:
    raise Terminated


@contextmanager
def in_words() -> Iterator[None]:
    """The whole life of the command, with what comes before a verb runs and after it: nothing of it ends with
    a traceback, on whatever streams. GGQ_DEBUG=1 leaves Python as it is."""
    if debugging():
        yield
        return
    if os.name == "posix":
        streams.install()
        signal.signal(signal.SIGTERM, _terminate)
    threading.excepthook = _thread_failed
    sys.unraisablehook = lambda _: (
        None
    )  # what an object's end or a hook of fork() raises: nobody can act on it
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # Python's warnings speak to who writes a program, not to who runs it
    try:
        if (notice := places.shelter()) is not None:
            current_output().info(notice)
        try:
            yield
        finally:
            streams.flush()
    except KeyboardInterrupt as stop:
        sys.exit(EXIT_TERMINATED if isinstance(stop, Terminated) else EXIT_INTERRUPTED)
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:
        explained = explain(error)
        current_output().error(explained)
        sys.exit(explained.exit_code)


def debugging() -> bool:
    return os.environ.get("GGQ_DEBUG") == "1"


failed_threads: list[BaseException] = []


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    """A thread that dies ends the command: the main thread would wait for it, or go on without its work."""
    if failure.exc_value is not None:
        failed_threads.append(failure.exc_value)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)  # it may be in a system call


_current: list[Output] = []


def set_current_output(output: Output) -> Output:
    """Remember the output of the running command, for an error that ends it."""
    _current[:] = [output]
    return output


def current_output() -> Output:
    """That of the running command; before there is one, as its arguments ask for it."""
    return _current[0] if _current else Output(json="--json" in sys.argv)

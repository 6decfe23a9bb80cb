"""Sudden deaths of child processes, for tests."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil


@contextmanager
def killing(name: str, number: signal.Signals = signal.SIGKILL, after_s: float = 0.2) -> Iterator[None]:
    """Send a signal to a process of that name, a descendant of this one, once it has computed for a while."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            for child in psutil.Process().children(recursive=True):
                try:
                    if child.name() == name and child.cpu_times().user > after_s:
                        child.send_signal(number)
                except psutil.NoSuchProcess:
                    continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()

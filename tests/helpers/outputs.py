"""What a run has made so far, for tests that look on."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from ggq.system import files


def digests(folder: Path) -> dict[str, str]:
    return {path.name: files.sha256_file(path) for path in sorted(folder.glob("*.gguf"))}


def taken_bytes(folder: Path) -> int:
    """Disk that all files below a folder take."""
    taken = 0
    with suppress(FileNotFoundError):  # what is gone while it is looked at
        for path in folder.rglob("*"):
            taken += files.allocated_bytes(path) or 0 if path.is_file() else 0
    return taken


def arrived_bytes(folder: Path) -> int:
    """Bytes of the largest file that a download has begun below a folder."""
    largest = 0
    with suppress(FileNotFoundError):  # a finished file takes its final name while it is looked at
        for path in folder.rglob("*.incomplete"):
            largest = max(largest, path.stat().st_size)
    return largest


@contextmanager
def watched(*folders: Path) -> Iterator[list[int]]:
    """The disk that folders take together, every few milliseconds."""
    seen = [0]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.005):
            seen.append(sum(map(taken_bytes, folders)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join()


def converters() -> list[psutil.Process]:
    """The conversions that this process has started and that still run."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "ggq.conversion.child" in child.cmdline():
                found.append(child)
    return found


def finished(folder: Path, model: str) -> list[str]:
    """The tensors that an unfinished sweep has written down."""
    journal = folder / f".ggq-sweep-{model}" / "journal"
    lines = journal.read_text().splitlines()[1:] if journal.exists() else []
    return [json.loads(line) for line in lines if line.endswith('"')]

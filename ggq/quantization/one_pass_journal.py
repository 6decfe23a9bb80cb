"""Which tensors are whole in the files of one pass: a line each, so that a broken one goes on from there."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Journal:
    """The journal of one work, which ``key`` tells from others; ``names`` are its files, beside the journal.

    The data of a line are in the files when it is written, but perhaps not on the disk: that bears the death
    of the process, not of the system, so what was written before the system last started is not believed.
    """

    def __init__(self, path: Path, key: str, names: Sequence[str]) -> None:
        """Raises OSError."""
        self.path = path
        self._head = {"key": key, "boot": _boot(), "files": list(names)}
        self.finished: set[str] = set()
        head, *lines = _lines(path) or [None]
        if head == self._head:
            self.finished = {line for line in lines if isinstance(line, str)}
        else:
            self.restart(head)

    def restart(self, before: Any = None) -> None:
        """Begin again; the files of the work ``before``, another journal's first line, are removed."""
        with contextlib.suppress(TypeError, KeyError):
            for name in before["files"]:
                if name == Path(name).name:
                    self.path.with_name(name).unlink(missing_ok=True)
        self.finished = set()
        self.path.write_text(json.dumps(self._head) + "\n", encoding="utf-8")

    def add(self, tensor: str) -> None:
        """Its data are in all files. Raises OSError."""
        with self.path.open("a", encoding="utf-8") as stream:
            # A line that a full disk cut short must not take this one with it.
            stream.write(f"\n{json.dumps(tensor)}\n")
        self.finished.add(tensor)


def _lines(path: Path) -> list[Any]:
    found = []
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
    return found


def _boot() -> str:
    """What changes whenever the system starts."""
    with contextlib.suppress(OSError):
        return _BOOT.read_text(encoding="ascii").strip()
    import psutil

    return str(int(psutil.boot_time()))

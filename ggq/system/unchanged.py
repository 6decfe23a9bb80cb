"""Files that must stay as they are while a run reads them.

What was made of a file that somebody overwrote meanwhile is a mix of two, and a record of it would name the
digest of the first. So a file is looked at before it is first read and after it was last read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ggq.errors import SourceChanged
from ggq.system import files


@dataclass(frozen=True)
class _Look:
    """A file as the system tells of it: ``size`` in bytes, ``written_ns`` when its data, ``touched_ns`` when
    anything of it changed last; ``place`` tells it from another file of its name."""

    size: int
    written_ns: int
    touched_ns: int
    place: tuple[int, int]

    @staticmethod
    def at(path: Path) -> _Look:
        stat = path.stat()
        return _Look(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, (stat.st_dev, stat.st_ino))


class Unchanged:
    """Files as they were when this was made: make it before the first of them is read.

    ``digests``: gives the sha256 that files had, where it is known. With it a file is read once more where
    only its place or its time of touching differs (it was renamed over, or its time was set back).
    """

    def __init__(
        self, paths: Iterable[Path], digests: Callable[[], Mapping[Path, str]] | None = None
    ) -> None:
        self._digests = digests
        self._seen: dict[Path, _Look] = {}
        for path in paths:
            try:
                self._seen[path] = _Look.at(path)
            except OSError as error:
                raise _unreadable(path, error) from error

    def require(self) -> None:
        """Look again, after the last read. Raises SourceChanged, which names the file."""
        for path, before in self._seen.items():
            try:
                now = _Look.at(path)
            except FileNotFoundError as error:
                raise SourceChanged(
                    f"{path} was removed or renamed while ggq read it.",
                    f"It had {before.size:,} bytes when this began. {_NOTHING_KEPT}",
                    "Put it back, then run the same command again.",
                ) from error
            except OSError as error:
                raise _unreadable(path, error) from error
            if now != before:
                self._compare(path, before, now)

    @contextmanager
    def guard(self) -> Iterator[None]:
        """A block that reads the files. An error in it, whatever it says, is due to a change where there was
        one. Raises as ``require`` does."""
        with self.explaining():
            yield
        self.require()

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """As ``guard``, but a block that ends well is not looked at."""
        try:
            yield
        except SourceChanged:
            raise
        except Exception as error:
            try:
                self.require()
            except SourceChanged as change:
                raise change from error
            raise

    def _compare(self, path: Path, before: _Look, now: _Look) -> None:
        if now.size != before.size:
            raise _changed(path, f"It had {before.size:,} bytes and has {now.size:,} now.")
        if now.written_ns != before.written_ns:
            raise _changed(path, "It was written to meanwhile.")
        known = self._digests().get(path) if self._digests else None
        if known is not None:
            if files.sha256_file(path) != known:
                raise _changed(path, "Its size and its time are the same, but its sha256 is not.")
        elif now.place != before.place:
            raise _changed(path, "Another file has its name now.")


_NOTHING_KEPT = "What was made of it is not kept, and nothing of it is recorded."


def _changed(path: Path, how: str) -> SourceChanged:
    return SourceChanged(
        f"{path} changed while ggq read it.",
        f"{how} {_NOTHING_KEPT}",
        "Run the same command again when nothing writes to that file any more.",
    )


def _unreadable(path: Path, error: OSError) -> SourceChanged:
    return SourceChanged(
        f"{path} cannot be read.",
        f"{error.strerror or os.strerror(error.errno or 0)}.",
        "Check the path and its permissions, then run the same command again.",
    )

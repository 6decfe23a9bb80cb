"""What was measured so far, so that a broken run goes on where it stopped: a line of JSON per measurement."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ggq.system import codec, files
from ggq.system.codec import WrongContent

T = TypeVar("T")


class Journal:
    """Measurements by what was measured and how. Without a path it forgets when the process ends."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._about: Mapping[str, Any] = {}
        self._found: dict[str, Any] = {}
        if path is not None and path.is_file():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    entry = json.loads(line)
                    self._found[entry["key"]] = entry["value"]
                except (ValueError, KeyError, TypeError):
                    # A line that a kill or a full disk cut short: it is measured again.
                    continue

    def about(self, about: Mapping[str, Any]) -> Journal:
        """The same journal, with this in each of its keys."""
        part = copy.copy(self)
        part._about = {**self._about, **about}
        return part

    def once(self, key: Mapping[str, Any], kind: type[T], measure: Callable[[], T]) -> T:
        """What was measured under ``key``, or else what ``measure`` gives, which is remembered at once."""
        known = self.get(key, kind)
        if known is None:
            known = measure()
            self.put(key, known)
        return known

    def get(self, key: Mapping[str, Any], kind: type[T]) -> T | None:
        """What was measured under ``key`` (anything that JSON can hold), or None. ``kind``: its type."""
        found = self._found.get(self._text(key))
        try:
            return None if found is None else codec.decode(kind, found)
        except WrongContent:
            # Another ggq wrote it, whose measurements were of another form.
            return None

    def put(self, key: Mapping[str, Any], value: Any) -> None:
        """Remember a measurement: JSON, and dataclasses in it. Raises OutputProblem, DiskFull."""
        text = json.dumps({"key": self._text(key), "value": codec.encode(value)})
        self._found[self._text(key)] = json.loads(text)["value"]
        if self._path is not None:
            with files.explain_os_error(self._path), self._path.open("a", encoding="utf-8") as stream:
                # A line that was cut short must not take this one with it.
                stream.write(f"\n{text}\n")

    def close(self) -> None:
        """Remove it: its measurements have gone into a record."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _text(self, key: Mapping[str, Any]) -> str:
        return json.dumps({**self._about, **key}, sort_keys=True)

"""What was measured so far, so that a broken run goes on where it stopped: a line of JSON per measurement."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ggq import files


class Journal:
    """Measurements by what was measured and how. Without a path it forgets when the process ends."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._found: dict[str, Any] = {}
        self._torn = False
        if path is not None and path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            self._torn = not text.endswith("\n")
            for line in text.splitlines():
                try:
                    entry = json.loads(line)
                    self._found[entry["key"]] = entry["value"]
                except (ValueError, KeyError, TypeError):
                    # The line that a kill cut short: it is measured again.
                    continue

    def get(self, key: Mapping[str, Any]) -> Any | None:
        """What was measured under ``key`` (anything that JSON can hold), or None."""
        return self._found.get(_text(key))

    def put(self, key: Mapping[str, Any], value: Any) -> None:
        """Remember a measurement at once. Raises OutputProblem, DiskFull."""
        self._found[_text(key)] = value
        if self._path is not None:
            with files.explain_os_error(self._path), self._path.open("a", encoding="utf-8") as stream:
                stream.write("\n" * self._torn + json.dumps({"key": _text(key), "value": value}) + "\n")
            self._torn = False

    def close(self) -> None:
        """Remove it: its measurements have gone into a record."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _text(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)

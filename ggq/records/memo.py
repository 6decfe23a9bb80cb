"""What was asked or measured once, kept in a JSON file for as long as what it was asked of stays the same."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ggq.system import files

_SCHEMA_VERSION = 4


class Memo:
    """Answers by their question. ``owner``: what they belong to; those of another owner are forgotten."""

    def __init__(self, file: Path, owner: Mapping[str, Any]) -> None:
        self._file = file
        self._owner = dict(owner)
        self._changed = False
        self.answers: dict[str, Any] = {}
        # Where nothing is there, or nothing that this version wrote, it is asked again.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads(file.read_text(encoding="utf-8"))
            if (found["schema_version"], found["owner"]) == (_SCHEMA_VERSION, self._owner):
                self.answers = dict(found["answers"])

    def get(self, question: str, ask: Callable[[], Any]) -> Any:
        """The answer, asked for when it is not known yet; something that JSON can hold."""
        if question not in self.answers:
            self.put(question, ask())
        return self.answers[question]

    def put(self, question: str, answer: Any) -> None:
        self.answers[question] = answer
        self._changed = True

    def save(self) -> None:
        """Raises OutputProblem, DiskFull."""
        if self._changed:
            content = {"schema_version": _SCHEMA_VERSION, "owner": self._owner, "answers": self.answers}
            files.write_json(self._file, content)
            self._changed = False

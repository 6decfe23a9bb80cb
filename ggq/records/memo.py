"""What was asked or measured once, kept in a JSON file for as long as what it was asked of stays the same."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ggq.system import codec, files

_SCHEMA_VERSION = 4

T = TypeVar("T")


@dataclass(frozen=True)
class _Content:
    schema_version: int
    owner: Mapping[str, Any]
    answers: dict[str, Any] = field(default_factory=dict)


class Memo:
    """Answers by their question. ``owner``: what they belong to; those of another owner are forgotten."""

    def __init__(self, file: Path, owner: Mapping[str, Any]) -> None:
        self._file = file
        self._owner = dict(owner)
        self._changed = False
        self._answers: dict[str, Any] = {}
        # Where nothing is there, or nothing that this version wrote, it is asked again.
        with contextlib.suppress(OSError, ValueError):
            found = codec.decode(_Content, json.loads(file.read_text(encoding="utf-8")))
            if (found.schema_version, found.owner) == (_SCHEMA_VERSION, self._owner):
                self._answers = found.answers

    def __contains__(self, question: str) -> bool:
        return question in self._answers

    def find(self, question: str, kind: type[T]) -> T | None:
        """The answer, of the class ``kind``; None where there is none."""
        with contextlib.suppress(KeyError, codec.WrongContent):
            return codec.decode(kind, self._answers[question])
        return None

    def get(self, question: str, kind: type[T], ask: Callable[[], T]) -> T:
        """The answer, asked for when it is not known yet."""
        found = self.find(question, kind)
        if found is None:
            found = ask()
            self.put(question, found)
        return found

    def put(self, question: str, answer: Any) -> None:
        self._answers[question] = codec.encode(answer)
        self._changed = True

    def forget(self) -> None:
        """Forget all answers."""
        self._answers.clear()

    def save(self) -> None:
        """Raises OutputProblem, DiskFull."""
        if self._changed:
            files.write_json(self._file, codec.encode(_Content(_SCHEMA_VERSION, self._owner, self._answers)))
            self._changed = False

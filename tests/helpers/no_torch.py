"""A test of the unit tier that imports torch or transformers fails: it would cost everybody some seconds."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

FORBIDDEN = ("torch", "transformers")


class _Refusal:
    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name in FORBIDDEN:
            why = f"The unit tier has no {name}: mark this test `torch` or `tool`."
            raise ModuleNotFoundError(why, name=name)
        return None


def forbid() -> None:
    sys.meta_path.insert(0, _Refusal())

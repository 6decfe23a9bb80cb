"""docs/python-api.md is what the docstrings say today, and holds everything that ``import ggq`` offers."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

import ggq

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "python-api.md"
OFFERED = [name for name in ggq.__all__ if not name.startswith("_")]


def test_the_page_is_current() -> None:
    generated = runpy.run_path(str(ROOT / "scripts" / "generate_api_docs.py"))["render"]()
    assert PAGE.read_text(encoding="utf-8") == generated, "run `make docs`"


@pytest.mark.parametrize("name", OFFERED)
def test_what_is_offered_is_described(name: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert f"### ggq.{name}\n" in page
    assert not (getattr(ggq, name).__doc__ or name).startswith(name), "no docstring of its own"

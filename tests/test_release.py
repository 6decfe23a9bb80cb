"""What a release says of itself on the package index."""

from __future__ import annotations

import re
import runpy
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
ADDRESS = "https://example.org/someone/ggq"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "scripts" / "prepare_release.py"))


def test_no_link_of_the_readme_is_relative(script: dict[str, Any]) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    made = script["with_absolute_links"](text, ADDRESS, "v1.2")
    targets = re.findall(r"\]\(([^)\s]+)\)", made)
    assert len(targets) == len(re.findall(r"\]\(([^)\s]+)\)", text)) > 5
    for target in targets:
        assert target.startswith(("https://", "#")), target
        if target.startswith(ADDRESS):
            kind, tag, path = target.removeprefix(f"{ADDRESS}/").split("/", 2)
            assert kind in ("blob", "raw") and tag == "v1.2"
            assert (ROOT / path.partition("#")[0]).exists(), path
    assert "<this repository>" not in made


def test_pictures_and_links_elsewhere(script: dict[str, Any]) -> None:
    made = script["with_absolute_links"]("![a](docs/a.svg) [b](https://b.org) [c](#c)", ADDRESS, "v1")
    assert made == f"![a]({ADDRESS}/raw/v1/docs/a.svg) [b](https://b.org) [c](#c)"


def test_the_urls_are_the_projects(script: dict[str, Any]) -> None:
    made = script["with_urls"]((ROOT / "pyproject.toml").read_text(encoding="utf-8"), ADDRESS, "v1.2")
    urls = tomllib.loads(made)["project"]["urls"]
    assert urls["Repository"] == ADDRESS
    assert all(url.startswith(ADDRESS) for url in urls.values())

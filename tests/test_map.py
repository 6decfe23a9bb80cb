"""docs/architecture.md names files that exist: newcomers look there first."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_file_of_the_map_exists() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:ggq/)?[a-z_]+/[a-z_/]+\.py)`", page))
    assert len(named) > 10
    missing = [
        name for name in sorted(named) if not any((ROOT / top / name).is_file() for top in ("", "ggq"))
    ]
    assert missing == []

"""docs/presets-format.md: its example is read, and it names every key that a file may have."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from ggq.presets import catalogue

PAGE = (Path(__file__).parents[2] / "docs" / "presets-format.md").read_text(encoding="utf-8")
EXAMPLE = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_example_is_read(tmp_path: Path) -> None:
    (text,) = EXAMPLE
    file = tmp_path / "mine.toml"
    file.write_text(text, encoding="utf-8")
    loaded = catalogue.load(file)
    own, other = loaded.resolve(["mine"])
    assert (own.name, other.name) == ("Q4_K_M_V8", "Q6_K")
    assert own.tensor_types == {"attn_v": "q8_0"}
    assert loaded.resolve(["q4v8"]) == [own]


def test_every_key_of_a_preset_is_explained() -> None:
    explained = set(re.findall(r"`(\w+)`", PAGE))
    keys = {field.name for field in fields(catalogue.Preset)} - {"name", "defined_in"}
    assert keys <= explained, keys - explained

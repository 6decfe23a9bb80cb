"""A model card is written by hand: what can be read of it is read, whatever stands beside it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml

from ggq.checkpoint import model_card


def card(tmp_path: Path, content: str | bytes) -> Path:
    file = tmp_path / "README.md"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


GOOD = """---
# a comment
license: "apache-2.0"
license_name: my: own
language:
- en
- no
base_model:
- org/one
- org/two
tags: [merge, "한국어"]
model-index:
- name: x
  results: {a: [1, 2}
pipeline_tag: text-generation
---
# Words
license: not this one
"""


def test_entries_are_read_one_by_one(tmp_path: Path) -> None:
    found = model_card.read(card(tmp_path, GOOD))
    assert found.entries == {
        "license": "apache-2.0",
        "language": ["en", "no"],
        "base_model": ["org/one", "org/two"],
        "tags": ["merge", "한국어"],
        "pipeline_tag": "text-generation",
    }
    assert found.remarks == ("of these entries of the model card nothing can be read: license_name",)
    assert model_card.license_of(card(tmp_path, GOOD)) == "apache-2.0"
    again = yaml.safe_load(found.text().strip("-\n"))
    assert again == found.entries


@pytest.mark.parametrize(
    ("content", "license_name", "remarks"),
    [
        ("---\nlicense: apache-2.0\ntags:\nbase_model:\n---\n", "apache-2.0", 1),
        ("---\nlicense: other\ntags:\n\t- merge\nbase_model: [a/b, c/d\n---\n", "other", 1),
        ("---\nlicense: mit\nmodel-index:\n- name: Modèle\n---\n".encode("latin-1"), "mit", 1),
        ("\ufeff---\nlicense: mit\n---\n", "mit", 0),
        ("---\r\nlicense: mit\r\n---\r\n", "mit", 0),
        ("---\nlicense: mit\n", None, 0),
        ("# no front matter\nlicense: mit\n", None, 0),
        ("", None, 0),
    ],
)
def test_odd_cards(tmp_path: Path, content: str | bytes, license_name: str | None, remarks: int) -> None:
    file = card(tmp_path, content)
    found = model_card.read(file)
    assert found.entries.get("license") == model_card.license_of(file) == license_name
    assert len(found.remarks) == remarks


def test_no_card_and_no_file(tmp_path: Path) -> None:
    assert model_card.read(tmp_path / "README.md") == model_card.Card({})
    (tmp_path / "README.md").symlink_to("/dev/zero")
    assert "device" in model_card.read(tmp_path / "README.md").remarks[0]


@pytest.mark.parametrize(
    ("start", "unit", "end"),
    [
        ("---", "\n", ""),
        ("---", "\n", "---\nx"),
        ("---\nlicense:", " ", "\n---\n"),
        ("---\nlicense: ", "'", "\n---\n"),
        ("---\n", "a:\n", "---\n"),
        ("---\n", "license: x\n", "---\n"),
        ("---\ntags: ", "[", "\n---\n"),
        ("---\ntags: ", "- ", "\n---\n"),
        ("---\ntags:\n", "- a\n", "---\n"),
        ("---\ntags: &a [", "*a,", "]\n---\n"),
    ],
)
def test_cost_grows_with_length_not_with_its_square(tmp_path: Path, start: str, unit: str, end: str) -> None:
    def cost(count: int) -> float:
        file = card(tmp_path, start + unit * count + end)
        begun = time.process_time()
        model_card.read(file)
        model_card.license_of(file)
        return time.process_time() - begun

    small, large = cost(50_000), cost(400_000)
    assert large < 20 * small + 0.5  # the square would be 64 times as much

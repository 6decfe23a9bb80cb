"""The model card (README.md) of a checkpoint: the entries of its front matter that a GGUF's metadata takes.

A card is written by hand, and no conversion fails on it. Each entry is read by itself, so that a broken one
takes no other with it; what cannot be read is left out, and told.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ggq.system import untrusted

NAME = "README.md"

# What the converter takes (gguf-py's metadata.py): entries that are one text, and those that may be several.
_SINGLE = (
    "license", "license_name", "license_link", "name", "author", "version", "organization", "description",
    "finetune", "basename", "size_label", "url", "doi", "uuid", "repo_url", "model_name", "model_author",
    "model_version", "model_organization", "model_description", "model_finetune", "model_basename",
    "model_size_label", "model_url", "model_doi", "model_uuid", "model_repo_url", "model_creator",
    "model_type",
)  # fmt: skip
_SEVERAL = (
    "base_model", "base_models", "base_model_sources", "datasets", "dataset", "dataset_sources", "tags",
    "pipeline_tag", "languages", "language",
)  # fmt: skip
_READ_BYTES = 2 << 20  # results of benchmarks in a card's front matter have some 500 kB
_ENTRY_CHARACTERS = 16_384
_ALL_CHARACTERS = 65_536
_BRACKETS = 64
_TEXT_CHARACTERS = 4096
_KEY = re.compile(r"""["']?([A-Za-z_][\w-]{0,63})["']?:(?=\s|$)""", re.ASCII)
_LICENSE = re.compile(r"""\s{0,9}["']?([\w.+-]{1,99})""")

Value = str | list[str]


@dataclass(frozen=True)
class Card:
    """``entries``: in the card's order. ``remarks``: what could not be read, as sentences."""

    entries: Mapping[str, Value]
    remarks: tuple[str, ...] = ()

    def text(self) -> str:
        """The card again, so that any reader of YAML reads it. (JSON is YAML.)"""
        lines = (f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in self.entries.items())
        return "\n".join(("---", *lines, "---", ""))


def read(card: Path) -> Card:
    """Read a card; one that is not there has no entries. Never raises for what is in it."""
    blocks, remarks = _blocks(card)
    entries: dict[str, Value] = {}
    unread: list[str] = []
    left = _ALL_CHARACTERS
    for key, block in blocks.items():
        if key in _SINGLE or key in _SEVERAL:
            left -= len(block)
            value = _value(block, several=key in _SEVERAL) if left >= 0 else None
            if value:
                entries[key] = value
            else:
                unread.append(key)
    if unread:
        remarks.append(f"of these entries of the model card nothing can be read: {', '.join(unread)}")
    return Card(entries, tuple(remarks))


def license_of(card: Path) -> str | None:
    """The license in a card, as ``mit``."""
    blocks, _ = _blocks(card)
    found = _LICENSE.match(blocks.get("license", "").partition(":")[2])
    return found[1] if found else None


def _blocks(card: Path) -> tuple[dict[str, str], list[str]]:
    """The front matter's entries, each with all its lines, and remarks."""
    try:
        with untrusted.open_regular(card) as stream:
            raw = stream.read(_READ_BYTES)
    except FileNotFoundError:
        return {}, []
    except OSError as error:
        return {}, [f"the model card cannot be read: {error.strerror}"]
    remarks = []
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        text = raw.decode("utf-8-sig", "replace")
        if len(raw) < _READ_BYTES or error.start < len(raw) - 4:
            remarks.append("the model card is not in UTF-8")
    blocks: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in _front(text):
        if key := _KEY.match(line):
            lines = blocks.setdefault(key[1], [])
            lines.clear()  # of two the last one counts, as for readers of YAML
        lines.append(line)
    return {key: "\n".join(found) for key, found in blocks.items()}, remarks


def _front(text: str) -> Iterator[str]:
    """The lines between the first two ``---``; none where there is no second one."""
    first, _, rest = text.partition("\n")
    if first.rstrip() != "---":
        return
    found: list[str] = []
    for line in rest.split("\n"):
        if line.rstrip() == "---":
            yield from found
            return
        found.append(line.rstrip("\r"))


def _value(block: str, *, several: bool) -> Value | None:
    """The texts of an entry; None where it has none."""
    import yaml

    if len(block) > _ENTRY_CHARACTERS or block.count("[") + block.count("{") > _BRACKETS:
        return None  # PyYAML is slow, and takes the square of the depth
    try:
        # As the converter reads it: a tab is no indentation, and no Norwegian is False.
        plain = f"{block}\n".replace("- no\n", '- "no"\n').replace("\t", "  ")
        loaded = yaml.load(plain, Loader=yaml.BaseLoader)  # of texts alone
        value = next(iter(loaded.values()))
    except (yaml.YAMLError, ValueError, AttributeError, TypeError, RecursionError, StopIteration):
        return None
    if isinstance(value, list) and several:
        return [text for item in value if (text := _text(item))]
    return _text(value)


def _text(value: object) -> str | None:
    """A text that can be written down; None for null, and for what is no text."""
    if not isinstance(value, str) or len(value) > _TEXT_CHARACTERS:
        return None
    if value in ("", "~", "null", "Null", "NULL"):
        return None
    if "\ufffd" in value or not all(letter.isprintable() or letter in "\n\t" for letter in value):
        return None
    return value

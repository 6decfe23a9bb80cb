"""Sentences of a text, and how many words they have."""

from __future__ import annotations

import re
from collections.abc import Iterator

MOST_WORDS = 30
_FENCE = re.compile(r"^(```|~~~).*?^\1\s*$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
_BLOCK = re.compile(r"\n\s*\n|^\s*(?:[-*]|\d+\.)\s+|^#+.*$|\|", re.MULTILINE)
_END = re.compile(r"(?<=[.!?])[)*\"'`]*\s+(?=[`*\"'(]*[A-Z0-9`])")
_WORD = re.compile(r"\w")


def sentences(text: str) -> Iterator[str]:
    """The sentences of a plain text or of Markdown, without code blocks: items and cells begin new ones."""
    text = _LINK.sub(r"\1", _FENCE.sub("\n\n", text))
    for block in _BLOCK.split(text):
        for sentence in _END.split(" ".join(block.split())):
            if sentence:
                yield sentence


def words(sentence: str) -> int:
    return sum(1 for word in sentence.split() if _WORD.search(word))


def too_long(text: str) -> list[str]:
    """The sentences of more than MOST_WORDS words, each with its number."""
    return [f"{words(it)} words: {it}" for it in sentences(text) if words(it) > MOST_WORDS]

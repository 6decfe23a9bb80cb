"""Words with a fixed choice that measurements are asked for or answer with, and how options are read."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from ggq.llamacpp.offload import ALL_LAYERS


class Kind(StrEnum):
    """What is measured of a file."""

    QUALITY = "quality"
    SPEED = "speed"
    MEMORY = "memory"


KINDS = tuple(Kind)


class Until(StrEnum):
    """How much of a text is measured: until the order of the files is settled, so many chunks, or all."""

    RANKED = "ranked"
    CHUNKS = "chunks"
    FULL = "full"


class Stopped(StrEnum):
    """Why no more of a text was measured."""

    SETTLED = "settled"
    CAP = "cap"
    END_OF_TEXT = "end of text"
    AS_ASKED = "as asked"


class MeasuredLoadMode(StrEnum):
    """The ways of loading whose memory is measured."""

    MMAP = "mmap"
    NONE = "none"


# --- values of options ------------------------------------------------------------------------------------


def _number(word: str, least: int = 0) -> int:
    if not word.strip().isdecimal() or int(word) < least:
        raise ValueError(f"{word!r} is no whole number from {least} on.")
    return int(word)


def layers(word: str) -> int:
    """A number of layers, or ``all``."""
    return ALL_LAYERS if word.strip() == "all" else _number(word)


def layer_counts(word: str) -> tuple[int, ...] | Literal["sweep"]:
    """Several of such, or ``sweep``."""
    return "sweep" if word == "sweep" else tuple(map(layers, word.split(",")))


def threads(word: str) -> int | Literal["auto"]:
    """A number of threads, or ``auto``."""
    return "auto" if word == "auto" else _number(word, 1)

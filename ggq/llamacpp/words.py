"""Words that llama.cpp's tools take for a setting; they answer others with their whole help text."""

from __future__ import annotations

from enum import StrEnum


class FlashAttention(StrEnum):
    """``-fa``."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class LoadMode(StrEnum):
    """``-lm``: how the weights come into memory."""

    AUTO = "auto"
    NONE = "none"
    MMAP = "mmap"
    MLOCK = "mlock"
    MMAP_MLOCK = "mmap+mlock"
    DIO = "dio"


class CacheType(StrEnum):
    """``-ctk`` and ``-ctv``: a type of the cache."""

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    Q8_0 = "q8_0"
    Q4_0 = "q4_0"
    Q4_1 = "q4_1"
    IQ4_NL = "iq4_nl"
    Q5_0 = "q5_0"
    Q5_1 = "q5_1"

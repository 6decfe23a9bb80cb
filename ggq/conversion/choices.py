"""The words for how a checkpoint is converted and checked."""

from __future__ import annotations

from enum import StrEnum


class OutType(StrEnum):
    """The type of the GGUF; ``auto`` keeps the checkpoint's precision."""

    AUTO = "auto"
    BF16 = "bf16"
    F16 = "f16"
    F32 = "f32"
    Q8_0 = "q8_0"


# What presets are made from.
UNQUANTIZED = (OutType.AUTO, OutType.BF16, OutType.F16, OutType.F32)


class Verify(StrEnum):
    """How a conversion is checked; ``full`` looks at every value."""

    SAMPLED = "sampled"
    FULL = "full"
    OFF = "off"

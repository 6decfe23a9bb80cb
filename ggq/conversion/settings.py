"""How a checkpoint is converted: the options of ``ggq convert`` and of its function."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from ggq.settings import Option, settle


class Outtype(StrEnum):
    """The type of the GGUF; ``AUTO`` keeps the checkpoint's precision."""

    AUTO = "auto"
    BF16 = "bf16"
    F16 = "f16"
    F32 = "f32"
    Q8_0 = "q8_0"


# What presets are made from.
UNQUANTIZED = (Outtype.AUTO, Outtype.BF16, Outtype.F16, Outtype.F32)


class Verify(StrEnum):
    """How a conversion is checked: values in samples, all values, or not at all."""

    SAMPLED = "sampled"
    FULL = "full"
    OFF = "off"


@dataclass(frozen=True)
class ConvertSettings:
    """How to convert. ``mmproj``: the multimodal projector in place of the text model; ``force``: overwrite
    what is there."""

    outtype: Annotated[
        Outtype, Option("--outtype", help="The GGUF's type; auto keeps the checkpoint's precision.")
    ] = Outtype.AUTO
    mmproj: Annotated[
        bool, Option("--mmproj", help="Convert the multimodal projector instead of the text model.")
    ] = False
    verify: Annotated[
        Verify, Option("--verify", help="How the conversion is checked: `full` looks at every value.")
    ] = Verify.SAMPLED
    force: Annotated[bool, Option("--force", help="Overwrite what is there.")] = False

    def __post_init__(self) -> None:
        settle(self)

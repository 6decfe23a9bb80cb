"""What GGUF files are called: the community's way to write them, and a lenient reading of others."""

from __future__ import annotations

import re
from dataclasses import dataclass

SHARD = re.compile(r"(?P<stem>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf)", re.IGNORECASE)
_TYPED = re.compile(
    r"(?P<model>.+?)[-._ ]"
    r"(?P<type>(?:UD-)?I?Q[1-8]_(?:[01](?:_\d)*|K(?:_(?:XX?S|S|M|L|XX?L))?|NL|XX?S|S|M)"
    r"|TQ[12]_0|MXFP4(?:_MOE)?|NVFP4|BF16|FP?16|FP?32)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class FileName:
    """What a GGUF file's name says. ``type``: ``Q4_K_M``, None if it says none; ``shard``: its number."""

    model: str
    type: str | None
    shard: int | None = None


def output_name(model_name: str, preset: str) -> str:
    """``("Qwen3-0.6B", "Q4_K_M")`` -> ``Qwen3-0.6B-Q4_K_M.gguf``, without what file systems dislike."""
    stem = re.sub(r"[^\w.+-]+", "-", model_name.rsplit("/", 1)[-1]).strip("-.") or "model"
    return f"{stem}-{preset}.gguf"


def shard_name(stem: str, index: int, count: int) -> str:
    """``("Qwen3-0.6B-Q4_K_M", 1, 9)`` -> ``Qwen3-0.6B-Q4_K_M-00001-of-00009.gguf``."""
    return f"{stem}-{index:05d}-of-{count:05d}.gguf"


def parse_name(name: str) -> FileName:
    """What a name says, leniently: any case, ``-`` or ``.`` before the type, with or without a shard."""
    shard = SHARD.fullmatch(name)
    stem = shard["stem"] if shard else re.sub(r"\.gguf$", "", name, flags=re.IGNORECASE)
    number = int(shard["index"]) if shard else None
    match = _TYPED.fullmatch(stem)
    if match is None:
        return FileName(stem, None, number)
    word = re.sub(r"^FP(?=16|32)", "F", match["type"].upper())
    return FileName(match["model"], word, number)

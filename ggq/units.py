"""Quantities as people write them."""

from __future__ import annotations

import re

from ggq.errors import UsageProblem


def parse_seconds(text: str) -> float:
    """A span of time: ``90``, ``90s`` or ``1.5m`` -> seconds. Raises ValueError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min)?", text.strip())
    if found is None:
        raise ValueError(f"{text!r} is not a time; write it as 90s or 2m.")
    return float(found[1]) * (60 if (found[2] or "s").startswith("m") else 1)


def parse_bytes(text: str) -> int:
    """``500M`` or ``4 GB`` -> bytes, in decimal units, as disks are sold; ``4GiB`` in binary ones.

    Raises UsageProblem.
    """
    found = re.fullmatch(r"\s*(\d{1,18}(?:\.\d+)?)\s*(?:([kmgt])(i?)b?|b)?\s*", text, re.IGNORECASE)
    if found is None:
        raise UsageProblem(f"{text!r} is not a size.", "", "Write it as 500M, 4G or 4GiB.")
    exponent = " kmgt".index((found[2] or " ").lower())
    return int(float(found[1]) * (1024 if found[3] else 1000) ** exponent)


def parse_memory(text: str) -> int:
    """A size of memory: as ``parse_bytes``, but a bare number must be 0 or a plausible count of bytes.

    Raises UsageProblem.
    """
    count = parse_bytes(text)
    if text.strip().isdigit() and 0 < count < 1 << 20:
        raise UsageProblem(f"{text} bytes of memory are asked for.", "", f"Write {text}G for gigabytes.")
    return count

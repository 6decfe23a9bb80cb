"""The tokens at which a checkpoint ends a turn, by all the files that say so."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ggq.conversion.tokenizer_checks import SETTINGS
from ggq.conversion.tokenizer_file import read_json, text_of
from ggq.llamacpp.inference import LoadedGguf

_KEY = "eos_token_id"
_CONFIGS = ("generation_config.json", "config.json")
_NAMING = (SETTINGS, "special_tokens_map.json")


def find(folder: Path, id_of: Callable[[str], int | None]) -> dict[int, str]:
    """Id -> the first file that names it; the tokenizer's own end comes first. ``id_of``: a token's id by its
    text."""
    found: dict[int, str] = {}
    for name in _NAMING:
        text = text_of(read_json(folder / name).get("eos_token"))
        named = id_of(text) if text else None
        if named is not None:
            found.setdefault(named, name)
    for name in _CONFIGS:
        for identity in _ids(read_json(folder / name)):
            found.setdefault(identity, name)
    return found


def _ids(config: Mapping[str, Any]) -> Iterable[int]:
    """A number or a list of them, also in the parts of a config for text (``text_config`` and its like)."""
    value = config.get(_KEY)
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, int) and not isinstance(one, bool) and one >= 0:
            yield one
    for key in ("text_config", "language_config", "llm_config"):
        part = config.get(key)
        if isinstance(part, Mapping):
            yield from _ids(part)


def compare(folder: Path, id_of: Callable[[str], int | None], loaded: LoadedGguf) -> dict[str, Any]:
    """The ids at which the checkpoint ends a turn, those at which llama.cpp does not (``lost``), and ordinary
    tokens at which it alone does (``others``): it assumes an end where a file names none."""
    found = find(folder, id_of)
    lost = [
        {"id": identity, "name": loaded.name(identity), "file": file}
        for identity, file in found.items()
        if not loaded.ends_generation(identity)
    ]
    others = [
        {"id": identity, "name": loaded.name(identity)}
        for identity in loaded.ordinary_ends()
        if identity not in found
    ]
    return {"ids": sorted(found), "lost": lost, "others": others}


def remarks(found: Mapping[str, Any]) -> tuple[str, ...]:
    """Warnings about what ``compare`` found."""
    told = []
    if lost := found.get("lost"):
        names = ", ".join(
            f"{one['name'] or 'a token that the vocabulary lacks'} ({one['id']}, by {one['file']})"
            for one in lost[:5]
        )
        told.append(f"the checkpoint ends a turn at {names}, and llama.cpp does not stop there")
    if others := found.get("others"):
        names = ", ".join(f"{one['name']!r} ({one['id']})" for one in others[:5])
        told.append(f"llama.cpp stops at the ordinary token {names}, and the checkpoint does not")
    return tuple(told)

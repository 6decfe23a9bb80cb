"""The known gaps between what transformers writes and what llama.cpp's converter reads (config_gaps.toml)."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_FILE = Path(__file__).with_name("config_gaps.toml")
_ABSENT = object()


@functools.cache
def _table() -> Mapping[str, Any]:
    import tomllib

    table: dict[str, Any] = tomllib.loads(_FILE.read_text(encoding="utf-8"))
    return table


def missing_keys(config: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that the converter wants and ``config`` lacks, with their values.

    ``config``: a config.json, or a part of it with a ``model_type`` of its own; ``known``: the same as
    transformers' AutoConfig has it.
    """
    model_type = config.get("model_type", known.get("model_type"))
    found: dict[str, Any] = {}
    for gap in _table()["key"]:
        if model_type in gap["model_types"] and config.get(gap["key"]) is None and _has_layers(known, gap):
            value = (
                gap["value"] if "value" in gap else _follow(known, gap["from"], gap.get("default", _ABSENT))
            )
            if value is not _ABSENT:
                found[gap["key"]] = value
    return found


def surplus_keys(config: Mapping[str, Any]) -> list[str]:
    """The keys of a config.json that its architecture does not have, and the converter would believe."""
    return [
        gap["key"]
        for gap in _table()["surplus"]
        if config.get("model_type") in gap["model_types"] and config.get(gap["key"]) is not None
    ]


def translate(config: dict[str, Any]) -> None:
    """Change, in what AutoConfig made of a config.json, what the converter would read otherwise."""
    model_type = config.get("model_type")
    for gap in _table()["unmeant"]:
        if model_type in gap["model_types"] and _has_no(config, gap):
            for key in gap["keys"]:
                config.pop(key, None)
    for gap in _table()["word"]:
        words = config.get(gap["key"])
        if model_type not in gap["model_types"] or not isinstance(words, list):
            continue
        known = [gap["words"].get(str(word), str(word)) for word in words]
        if "as" not in gap:
            config[gap["key"]] = known
        elif config.get(gap["as"]) is None and set(map(str, words)) <= gap["words"].keys():
            config[gap["as"]] = "".join(known)


def _has_no(config: Mapping[str, Any], gap: Mapping[str, Any]) -> bool:
    """Whether the model lacks what the gap's keys are about: its count is 0, or no layer is of the kind."""
    if "if_zero" in gap:
        return config.get(gap["if_zero"]) == 0
    return gap["unless_layer"] not in (config.get(gap["layers"]) or ())


def options(architecture: str, tensor_names: Iterable[str]) -> list[str]:
    """The converter's options that a checkpoint needs, by its architecture and its tensors."""
    names = list(tensor_names)
    return [
        gap["option"]
        for gap in _table()["option"]
        if architecture in gap["architectures"]
        and names
        and not any(gap["unless_tensor"] in name for name in names)
    ]


def pre_tokenizer(tokenizer: Mapping[str, Any]) -> str | None:
    """llama.cpp's name of a tokenizer.json's pre-tokenizer, known by its rules; None for unknown ones."""
    steps = _steps(tokenizer.get("pre_tokenizer"))
    if not steps or steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return None
    rules = [_pattern(step) for step in steps[:-1]]
    if None in rules:
        return None
    if steps[-1].get("use_regex", True):
        rules.append(_table()["byte_level"])
    return next((known["name"] for known in _table()["pre_tokenizer"] if known["rules"] == rules), None)


def _pattern(step: Mapping[str, Any]) -> str | None:
    """The pattern that a step sets apart; None for a step of another kind."""
    if step.get("type") == "Digits" and step.get("individual_digits"):
        return r"\p{N}"
    if step.get("type") != "Split" or step.get("behavior") != "Isolated" or step.get("invert"):
        return None
    pattern = step.get("pattern")
    found = pattern.get("Regex") if isinstance(pattern, Mapping) else None
    return found if isinstance(found, str) else None


def _has_layers(known: Mapping[str, Any], gap: Mapping[str, Any]) -> bool:
    kind = gap.get("if_all_layers_are")
    return kind is None or set(known.get("layer_types") or ()) == {kind}


def _steps(pre_tokenizer: Any) -> list[dict[str, Any]]:
    if not isinstance(pre_tokenizer, dict):
        return []
    if pre_tokenizer.get("type") == "Sequence":
        return list(pre_tokenizer.get("pretokenizers", []))
    return [pre_tokenizer]


def _follow(known: Mapping[str, Any], path: str, default: Any) -> Any:
    value: Any = known
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return default if value is None else value

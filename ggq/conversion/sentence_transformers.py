"""The files of sentence-transformers in a checkpoint: how one vector comes of a text, and what of it a GGUF
does not carry."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggq.errors import CheckpointProblem
from ggq.system import untrusted

MODULES, CONFIG = "modules.json", "config.json"
_PROMPTS, _TRANSFORMER = "config_sentence_transformers.json", "sentence_bert_config.json"
# A mode's name in sentence-transformers 5.4 and later, and its key before.
_MODES: Mapping[str, str] = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
}
# llama.cpp's number of each mode that it has (enum llama_pooling_type).
POOLING_TYPES: Mapping[str, int] = {"mean": 1, "cls": 2, "lasttoken": 3}


@dataclass(frozen=True)
class Settings:
    """``pooling``: cls, mean or lasttoken, None without a Pooling module; ``lost``: sentences, without a full
    stop, on what the files say and a GGUF cannot."""

    pooling: str | None
    lost: tuple[str, ...]


def read(folder: Path, context: int | None = None) -> Settings | None:
    """The settings in a checkpoint; None when it has no modules.json. ``context``: the GGUF's, in tokens.

    Raises CheckpointProblem for a pooling that llama.cpp does not have, and for files that cannot be read.
    """
    if not (folder / MODULES).is_file():
        return None
    pooling: str | None = None
    lost: list[str] = []
    for kind, path in _modules(folder):
        if kind == "Pooling":
            settings = _object(folder, f"{path}/{CONFIG}")
            pooling = _mode(settings)
            if settings.get("include_prompt") is False:
                lost.append("the prompt's tokens are left out of its pooling; llama.cpp counts all tokens")
        elif kind == "Normalize":
            lost.append(
                "it scales each vector to length 1, which is not in the GGUF: llama-server does so by "
                "itself, the Python binding with normalize=True"
            )
        elif kind == "Dense":
            lost.append(
                f"its {kind} layer ({path}) is not in the GGUF, which gives the vectors before that layer"
            )
        elif kind != "Transformer":
            lost.append(f"its {kind} step ({path or 'without files'}) is not in the GGUF")
    lost += _prompts(folder)
    own = _object(folder, _TRANSFORMER) if (folder / _TRANSFORMER).is_file() else {}
    if own.get("do_lower_case"):
        lost.append("sentence-transformers writes a text in small letters first, which is not in the GGUF")
    longest = own.get("max_seq_length")
    if isinstance(longest, int) and (context is None or longest < context):
        lost.append(f"sentence-transformers cuts a text at {longest} tokens; llama.cpp does not cut it")
    return Settings(pooling, tuple(lost))


def settle(folder: Path) -> None:
    """Write the pooling of a view as the converter reads it, where it is in another form.

    Raises CheckpointProblem.
    """
    if not (folder / MODULES).is_file():
        return
    for kind, path in _modules(folder):
        if kind != "Pooling":
            continue
        settings = _object(folder, f"{path}/{CONFIG}")
        mode = _mode(settings)
        # The converter takes a truth among the older keys first, and only a text for the newer one.
        if settings.get("pooling_mode") == mode or settings.get(_MODES[mode]) is True:
            continue
        place = folder / path
        if path and place.is_symlink():
            place.unlink()
        place.mkdir(exist_ok=True)
        (place / CONFIG).unlink(missing_ok=True)
        content = {key: value for key, value in settings.items() if key not in _MODES.values()}
        (place / CONFIG).write_text(json.dumps({**content, "pooling_mode": mode}), encoding="utf-8")


def _modules(folder: Path) -> Iterator[tuple[str, str]]:
    """Each module's kind (the last part of its class's name) and folder, in their order."""
    try:
        found = untrusted.read_json(folder / MODULES)
    except (untrusted.Unsound, OSError) as error:
        raise _unreadable(MODULES, str(error)) from error
    if not isinstance(found, list):
        raise _unreadable(MODULES, "It is JSON, but not a list")
    for module in found:
        kind, path = (module.get("type"), module.get("path")) if isinstance(module, dict) else (None, None)
        if not isinstance(kind, str) or not isinstance(path, str):
            raise _unreadable(MODULES, "A module has no type or no path")
        if path.startswith((".", "/", "\\")) or len(Path(path).parts) > 1 or ":" in path or "\\" in path:
            raise _unreadable(MODULES, "A module's path leads out of the checkpoint")
        yield kind.rsplit(".", 1)[-1], path.rstrip("/")


def _mode(settings: Mapping[str, Any]) -> str:
    said = settings.get("pooling_mode")
    modes = [said] if isinstance(said, str) else list(said) if isinstance(said, list) else []
    if not modes:
        modes = [mode for mode, key in _MODES.items() if settings.get(key) is True]
    if len(modes) == 1 and modes[0] in POOLING_TYPES:
        return str(modes[0])
    words = " and ".join(str(mode)[:40] for mode in modes[:8]) or "nothing that is known"
    raise CheckpointProblem(
        "llama.cpp cannot pool this model's vectors as sentence-transformers does.",
        f"Its Pooling module asks for {words}; a GGUF can say cls, mean or lasttoken, one of them.",
        "Use it with sentence-transformers; a GGUF of it would give other vectors.",
    )


def _prompts(folder: Path) -> list[str]:
    settings = _object(folder, _PROMPTS) if (folder / _PROMPTS).is_file() else {}
    prompts = settings.get("prompts")
    names = [str(name) for name, text in prompts.items() if text] if isinstance(prompts, dict) else []
    if not names:
        return []
    return [
        f"its prompts ({', '.join(name[:40] for name in names[:6])}) are not in the GGUF: put them before "
        f"the text ({_PROMPTS} has their words)"
    ]


def _object(folder: Path, name: str) -> dict[str, Any]:
    try:
        return untrusted.read_object(folder / name)
    except (untrusted.Unsound, OSError) as error:
        raise _unreadable(name, str(error)) from error


def _unreadable(name: str, why: str) -> CheckpointProblem:
    return CheckpointProblem(
        f"{name} of the checkpoint cannot be read.",
        f"{why[:200].rstrip('.')}.",
        "Download the model again, or remove modules.json: the GGUF then says nothing about pooling.",
    )

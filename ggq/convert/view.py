"""A view of a checkpoint folder: the user's files by links, with the few that ggq completes replaced.

The user's folder is never written to. What runs code is left out of the view: Python files, and the
``auto_map`` entries that would have transformers load them. Nothing from a checkpoint is ever executed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggq import files, gguf_names, model_card
from ggq.checkpoint import Checkpoint
from ggq.storage import QUANTIZATION_KEYS

CONFIG = "config.json"
_WITH_AUTO_MAP = (CONFIG, "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")


@dataclass(frozen=True)
class SourceInfo:
    """Where a checkpoint comes from: a repository of the Hub at a commit, with its license (as ``mit``)."""

    repo_id: str
    commit: str
    license: str | None = None

    @property
    def name(self) -> str:
        """The model's name, without its owner's."""
        return self.repo_id.rsplit("/", 1)[-1]


def make(checkpoint: Checkpoint, parent: Path, source: SourceInfo | None) -> Path:
    """Make the view below ``parent`` and return it. It has the model's name: the converter reads that, too.

    Raises OutputProblem, DiskFull.
    """
    name = source.name if source else checkpoint.path.resolve().name
    view = parent / (gguf_names.output_name(name, "view").removesuffix("-view.gguf") or "model")
    with files.explain_os_error(view, "set TMPDIR to another folder"):
        view.mkdir()
        for entry in sorted(checkpoint.path.iterdir()):
            if _is_wanted(entry) and entry.name != model_card.NAME:
                _link(entry, view / entry.name)
        if checkpoint.storage.ignored:
            _without(view / CONFIG, QUANTIZATION_KEYS)
        for file in _WITH_AUTO_MAP:
            _without(view / file, ("auto_map", "custom_pipelines"))
        card = model_card.read(checkpoint.path / model_card.NAME)
        if source is not None and source.license and not card.entries:
            card = model_card.Card({"license": source.license})
        # Its own front matter is written by hand: the converter gets what could be read of it.
        (view / model_card.NAME).write_text(card.text(), encoding="utf-8")
    return view


def complete(view: Path, keys: Mapping[str, Any]) -> None:
    """Add keys to the view's config.json; a mapping's keys are added to the part of that name."""
    file = view / CONFIG
    config = json.loads(file.read_text(encoding="utf-8"))
    merge(config, keys)
    _replace(file, config)


def merge(config: dict[str, Any], keys: Mapping[str, Any]) -> None:
    """Put ``keys`` where ``config`` has none."""
    for key, value in keys.items():
        if isinstance(value, Mapping) and isinstance(config.get(key), dict):
            merge(config[key], value)
        elif config.get(key) is None:
            config[key] = value


def _is_wanted(entry: Path) -> bool:
    hidden = entry.name.startswith(".")
    return not hidden and entry.suffix not in (".py", ".pyc", ".gguf") and (entry.is_file() or entry.is_dir())


def _link(entry: Path, link: Path) -> None:
    try:
        link.symlink_to(entry.resolve(), target_is_directory=entry.is_dir())
    except OSError:  # a file system, or a Windows account, without symbolic links
        if entry.is_dir():
            shutil.copytree(entry, link)
        else:
            shutil.copyfile(entry, link)


def _without(file: Path, keys: Iterable[str]) -> None:
    if not file.is_file():
        return
    content = json.loads(file.read_text(encoding="utf-8"))
    if _drop(content, keys):
        _replace(file, content)


def _drop(content: Any, keys: Iterable[str]) -> bool:
    """Remove ``keys`` at every depth of a JSON value; says whether any was there."""
    if isinstance(content, list):
        inner = [_drop(item, keys) for item in content]  # all of them, not only up to the first
        return any(inner)
    if not isinstance(content, dict):
        return False
    own = [content.pop(key) for key in keys if key in content]
    inner = [_drop(item, keys) for item in content.values()]
    return bool(own) or any(inner)


def _replace(file: Path, content: Any) -> None:
    """Write a file of the view anew; the link goes, what it leads to stays."""
    if file.is_symlink():
        file.unlink()
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")

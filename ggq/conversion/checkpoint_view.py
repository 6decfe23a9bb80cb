"""A view of a checkpoint folder: the user's files by links, with the few that ggq completes replaced.

The user's folder is never written to. The view has a name of ggq's own, and holds only kinds of files that
the converter and transformers read as data: settings, vocabularies, templates, weights, the model card. What
names code of the checkpoint (``auto_map`` and its like) is taken out of every JSON file in it.
"""

from __future__ import annotations

import json
import re
import shutil
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggq.checkpoint import files as checkpoint_files
from ggq.checkpoint import model_card
from ggq.checkpoint.checkpoint import Checkpoint
from ggq.checkpoint.storage import QUANTIZATION_KEYS
from ggq.gguf import names as gguf_names
from ggq.system import files, untrusted

CONFIG = "config.json"
NAME = "checkpoint"
_SETTINGS = (
    CONFIG, "generation_config.json", "hf_quant_config.json", "preprocessor_config.json",
    "processor_config.json", "video_preprocessor_config.json", "modules.json", "sentence_bert_config.json",
    "config_sentence_transformers.json",
)  # fmt: skip
_VOCABULARIES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "tekken.json", "tokenizer.jsonl", "tokenizer.model.v3",
    "rwkv_vocab_v20230424.txt", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
_VOCABULARY_SUFFIXES = (".tiktoken", ".model", ".spm", ".bpe")
_WEIGHTS = {
    "safetensors": ("model.safetensors.index.json", "mask_embedding.pt"),
    "bin": ("pytorch_model.bin.index.json",),
}
# What transformers takes for the name of a file with code, or of a config that has such names.
CODE_KEYS = ("auto_map", "configuration_files", "custom_generate", "custom_pipelines")
# A letter of a key may be written as \\u0061.
_ESCAPED_LETTER = re.compile(rb"\\u00(?:5f|6[1-9a-f]|7[0-9a])", re.IGNORECASE)


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


def model_name(checkpoint: Checkpoint, source: SourceInfo | None) -> str:
    """The name that the converter is to know the model by."""
    name = source.name if source else checkpoint.path.resolve().name
    return gguf_names.output_name(name, "view").removesuffix("-view.gguf") or "model"


def make(checkpoint: Checkpoint, parent: Path, source: SourceInfo | None) -> Path:
    """Make the view below ``parent`` and return it.

    Raises CheckpointProblem for a JSON file that names code and cannot be read, OutputProblem, DiskFull.
    """
    view = parent / NAME
    with files.explain_os_error(view, "set TMPDIR to another folder"):
        view.mkdir()
        for entry in _wanted(checkpoint):
            place = view / entry.relative_to(checkpoint.path)
            place.parent.mkdir(exist_ok=True)
            if entry.suffix != ".json" or not _write_without_code(entry, place):
                _link(entry, place)
        if checkpoint.storage.ignored:
            _without(view / CONFIG, QUANTIZATION_KEYS)
        card = model_card.read(checkpoint.path / model_card.NAME)
        if source is not None and source.license and not card.entries:
            card = model_card.Card({"license": source.license})
        # Its own front matter is written by hand: the converter gets what could be read of it.
        (view / model_card.NAME).write_text(card.text(), encoding="utf-8")
    return view


def change(view: Path, settle: Callable[[dict[str, Any]], None]) -> None:
    """Have the view's config.json changed by ``settle``."""
    file = view / CONFIG
    config = json.loads(file.read_text(encoding="utf-8"))
    settle(config)
    replace(file, config)


def merge(config: dict[str, Any], keys: Mapping[str, Any]) -> None:
    """Put ``keys`` where ``config`` has none."""
    for key, value in keys.items():
        if isinstance(value, Mapping) and isinstance(config.get(key), dict):
            merge(config[key], value)
        elif config.get(key) is None:
            config[key] = value


def is_wanted(name: str) -> bool:
    """Whether a file of the top folder that is no weights belongs into a view, by its name."""
    return name in (*_SETTINGS, *_VOCABULARIES) or (
        not name.startswith(".") and name.endswith(_VOCABULARY_SUFFIXES)
    )


def _wanted(checkpoint: Checkpoint) -> Iterator[Path]:
    """The checkpoint's files that go into the view: regular ones, of known names."""
    weights = {*checkpoint.weight_files, *(checkpoint.path / it for it in _WEIGHTS[checkpoint.weight_format])}
    for entry in sorted(checkpoint.path.iterdir()):
        if (entry in weights or is_wanted(entry.name)) and _is_regular(entry):
            yield entry
        for folder, names in checkpoint_files.PARTS:
            if folder.fullmatch(entry.name) and entry.is_dir():
                yield from (
                    part
                    for part in sorted(entry.iterdir())
                    if names.fullmatch(part.name) and _is_regular(part)
                )


def _is_regular(entry: Path) -> bool:
    try:
        return stat.S_ISREG(entry.stat().st_mode)
    except OSError:  # a link that leads nowhere
        return False


def _link(entry: Path, link: Path) -> None:
    try:
        link.symlink_to(entry.resolve())
    except OSError:  # a file system, or a Windows account, without symbolic links
        shutil.copyfile(entry, link)


def _without(file: Path, keys: Collection[str]) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    if _drop(content, keys):
        replace(file, content)


def _write_without_code(file: Path, place: Path) -> bool:
    """Write a JSON file to ``place`` without the names of code in it; False when it has none of them."""
    with checkpoint_files.explained(file):
        raw = untrusted.read_bytes(file, untrusted.TOKENIZER.text_bytes)
        if not any(key.encode() in raw for key in CODE_KEYS) and not _ESCAPED_LETTER.search(raw):
            return False
        content = untrusted.parse(raw, untrusted.TOKENIZER)
    if not _drop(content, CODE_KEYS):
        return False
    replace(place, content)
    return True


def _drop(content: Any, keys: Collection[str]) -> bool:
    """Remove ``keys`` at every depth of a JSON value; says whether any was there.

    A key with a number stays: it is a token of a vocabulary.
    """
    level, found = [content], False
    while level:
        value = level.pop()
        if isinstance(value, list):
            level += value
        elif isinstance(value, dict):
            for key in [key for key in keys if not isinstance(value.get(key, 0), (int, float))]:
                del value[key]
                found = True
            level += value.values()
    return found


def replace(file: Path, content: Any) -> None:
    """Write a file of the view; the link goes, what it leads to stays."""
    if file.is_symlink():
        file.unlink()
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")

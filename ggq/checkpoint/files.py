"""The small files of a checkpoint folder, read as untrusted input, and words for those that are unsound."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from ggq.errors import CheckpointProblem
from ggq.system import untrusted
from ggq.system.untrusted import Bounds, Unsound

# Read by others, and only looked over here.
_VOCABULARIES = ("tokenizer.json", "vocab.json", "tekken.json")
_SETTINGS = (
    "config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "processor_config.json", "preprocessor_config.json",
    "video_preprocessor_config.json", "chat_template.json", "modules.json",
    "config_sentence_transformers.json", "sentence_bert_config.json", "adapter_config.json", "params.json",
    "hf_quant_config.json", "quantize_config.json", "quantization_config.json",
)  # fmt: skip
_WITH_TOKENS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_LISTS = ("modules.json", "added_tokens.json", "chat_template.json")
_TEXTS = ("merges.txt", "vocab.txt", "chat_template.jinja")
_BINARIES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
_TEXT_BYTES = 64 << 20
# Folders that the converter reads, and what of them: templates; parts of sentence-transformers, which are
# numbered (1_Pooling); audio tokenizers.
PARTS = (
    (re.compile(r"additional_chat_templates"), re.compile(r"[\w.-]+\.jinja")),
    (
        re.compile(r"\d+_[A-Za-z]+|audio_tokenizer|speech_tokenizer"),
        re.compile(r"config\.json|model\.safetensors"),
    ),
)


def settings(file: Path) -> dict[str, Any]:
    """The object in a JSON file of settings. Raises CheckpointProblem, OSError."""
    return read_object(file, bounds_of(file.name))


def bounds_of(name: str) -> Bounds:
    """Of a JSON file of settings, by its name."""
    return untrusted.ADDED_TOKENS if name in _WITH_TOKENS else untrusted.SETTINGS


def index(file: Path) -> dict[str, Any]:
    """The object in an index of shards. Raises CheckpointProblem, OSError."""
    return read_object(file, untrusted.INDEX)


def read_object(file: Path, bounds: Bounds) -> dict[str, Any]:
    """The object in a JSON file. Raises CheckpointProblem, OSError."""
    with explained(file):
        raw = untrusted.read_bytes(file, bounds.text_bytes)
        refuse_pointer(file, raw)
        return untrusted.as_object(untrusted.parse(raw, bounds))


def check(folder: Path, names: Iterable[str]) -> None:
    """Look over what the converter and transformers will read beside the weights, and without a bound: every
    file must be sound. Raises CheckpointProblem, OSError."""
    for part in sorted(folder.glob("*/config.json")):
        if any(known.fullmatch(part.parent.name) for known, _ in PARTS):
            _check_settings(part)
    for name in names:
        if name in _VOCABULARIES:
            _check_vocabulary(folder / name)
        elif name in _TEXTS or name in _BINARIES or name.endswith(".tiktoken"):
            _check_text(folder / name)
        elif name in _SETTINGS:
            _check_settings(folder / name)


def _check_vocabulary(file: Path) -> None:
    """Bounds and ends of a vocabulary; its values are not made: they are many, and read by others."""
    with explained(file):
        raw = untrusted.read_bytes(file, untrusted.TOKENIZER.text_bytes)
        refuse_pointer(file, raw)
        untrusted.decode(raw, untrusted.TOKENIZER)
        if not (raw.lstrip()[:1] in b"{[" and raw.rstrip()[-1:] in b"}]"):
            raise Unsound("It is not a whole JSON text")


def _check_settings(file: Path) -> None:
    with explained(file):
        bounds = bounds_of(file.name)
        raw = untrusted.read_bytes(file, bounds.text_bytes)
        refuse_pointer(file, raw)
        value = untrusted.parse(raw, bounds)
        if file.name not in _LISTS:
            untrusted.as_object(value)
        elif not isinstance(value, (dict, list)):
            raise Unsound("It is JSON, but neither an object nor a list")


def _check_text(file: Path) -> None:
    with explained(file):
        raw = untrusted.read_bytes(file, _TEXT_BYTES)
        refuse_pointer(file, raw)
        if not raw.strip():
            raise Unsound("It is empty")
        if file.name not in _BINARIES:
            untrusted.as_text(raw)


@contextlib.contextmanager
def explained(file: Path) -> Iterator[None]:
    """Turn Unsound into words about ``file``. Raises CheckpointProblem."""
    try:
        yield
    except Unsound as error:
        damaged(file, f"{error}.", error)


def refuse_pointer(file: Path, start: bytes) -> None:
    """Raises CheckpointProblem for what Git LFS puts in a file's place."""
    if start.startswith(b"version "):
        raise CheckpointProblem(
            f"{file} is a pointer of Git LFS, not the file itself.",
            "The repository was cloned without Git LFS.",
            "Run `git lfs pull` in it, or get the model with `ggq download`.",
        )


def cut_short(file: Path, expected_bytes: int, found_bytes: int) -> NoReturn:
    raise CheckpointProblem(
        f"{file} is truncated.",
        f"It should have {expected_bytes:,} bytes and has {found_bytes:,}.",
        "Download it again: `ggq download` resumes and checks it.",
    )


def damaged(file: Path, why: str, cause: Exception | None = None) -> NoReturn:
    raise CheckpointProblem(
        f"{file} is damaged.", why, "Get that file again from the model's source (`ggq download` checks it)."
    ) from cause

"""Which files of a repository a conversion needs: what llama.cpp's converter and transformers read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from ggq.errors import UsageProblem
from ggq.hub.repository import RemoteFile

# Beside the weights. "*.json" covers config, tokenizer, generation, template, processor, quantization files.
_COMPANIONS = (
    "*.json", "*.jinja", "*.tiktoken", "*.model", "tokenizer*", "merges.txt", "*vocab*.txt",
    "README.md", "LICEN[CS]E*", "NOTICE*",
)  # fmt: skip
_NOT_COMPANIONS = ("trainer_state.json", "*results.json", "*.index*.json", "adapter_config.json")
# The converter reads only the top folder, but for: alternative templates, the pooling and dense modules of
# sentence-transformers, and the audio parts of two families.
_SUBFOLDERS = re.compile(
    r"additional_chat_templates/[^/]+\.jinja"
    r"|(?:\d_[A-Za-z]+|audio_tokenizer|speech_tokenizer)/(?:config\.json|model\.safetensors)"
)
# model.fp16.safetensors: the same weights once more. (model.safetensors-00001-of-… is a shard.)
_VARIANT = re.compile(r"(?:pytorch_)?model\.(?!safetensors)\w+(?:-\d+-of-\d+)?\.(?:safetensors|bin)")
_NUMBERED = re.compile(
    r"(?P<stem>[^/]{1,200})-(?P<index>[0-9]{5})-of-(?P<count>[0-9]{5})(?P<suffix>\.safetensors|\.bin)"
)
_FAMILIES = 8  # there is one; names may be of a stranger's making
_SHARD = re.compile(r".*-\d+-of-\d+(?:\.\w+)?")


def select_files(
    files: Sequence[RemoteFile], include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> tuple[RemoteFile, ...]:
    """What to download: what a conversion needs, and what ``include`` asks for, less what ``exclude`` names.

    Patterns are those of a shell (``*.gguf``, ``onnx/*``), matched against the whole path, ``*`` across
    folders too. Of the weights one set is taken: safetensors over ``.bin``, shards over the same in one file.

    Raises UsageProblem when an ``include`` matches nothing.
    """
    for pattern in include:
        if not any(fnmatchcase(file.path, pattern) for file in files):
            raise UsageProblem(
                f"No file of the repository matches --include {pattern!r}.",
                f"It holds {_some([file.path for file in files])}.",
                "Patterns match the whole path, for example '*.gguf' or 'onnx/*'.",
            )
    names = [file.path for file in files]
    chosen = {*weight_files(names), *filter(_is_companion, names)}
    chosen |= {name for name in names if _matches(name, include)}
    return tuple(file for file in files if file.path in chosen and not _matches(file.path, exclude))


def weight_files(names: Sequence[str]) -> tuple[str, ...]:
    """The one set of weights that a conversion reads, with its index; empty if there is none."""
    top = [name for name in names if "/" not in name and not _VARIANT.fullmatch(name)]
    tensors = [name for name in top if name.endswith(".safetensors") and not name.startswith("adapter_")]
    if any(name.startswith("model") for name in tensors):
        tensors = [name for name in tensors if not name.startswith("consolidated")]
    if not tensors:
        tensors = [name for name in top if name.startswith("pytorch_model") and name.endswith(".bin")]
    if any(_SHARD.fullmatch(name) for name in tensors):
        tensors = [name for name in tensors if name not in ("model.safetensors", "pytorch_model.bin")]
    if not tensors:
        return ()
    index = f".{tensors[0].rsplit('.', 1)[-1]}.index.json"
    return (*tensors, *(name for name in top if name.endswith(index)))


def missing_shards(names: Iterable[str]) -> tuple[str, ...]:
    """The weights that the names of others announce (``-00002-of-00002``), and that are not among them."""
    held = set(names)
    families = {
        (found["stem"], found["count"], found["suffix"])
        for found in filter(None, map(_NUMBERED.fullmatch, held))
    }
    announced = {
        f"{stem}-{index:05d}-of-{count}{suffix}"
        for stem, count, suffix in sorted(families)[:_FAMILIES]
        for index in range(1, int(count) + 1)
    }
    return tuple(sorted(announced - held))


def _is_companion(name: str) -> bool:
    if "/" in name:
        return bool(_SUBFOLDERS.fullmatch(name))
    return _matches(name, _COMPANIONS) and not _matches(name, _NOT_COMPANIONS)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "") or "no files"

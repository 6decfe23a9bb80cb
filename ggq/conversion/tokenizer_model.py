"""A tokenizer.model made of a tokenizer.json, for the converter.

transformers 5 saves a SentencePiece tokenizer as tokenizer.json alone. For some architectures the converter
then stops (Gemma, Phi-3); for Llama's it goes on and gives every token the same score (LlamaHfVocab in
gguf-py's vocab.py), so that llama.cpp, which merges by score, tokenizes otherwise than the checkpoint. The
scores are in tokenizer.json all the same: they are the order of its merges.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ggq.conversion import tokenizer_checks
from ggq.conversion.tokenizer_checks import FILE, MODEL

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def complete(view: Path, check: Callable[[Any], None] = tokenizer_checks.require) -> bool:
    """Write tokenizer.model into the view if it has none and its tokenizer.json is of that kind.

    Returns whether it did; ``check`` is given the tokenizer as its library reads it. Raises UnsoundTokenizer,
    and what ``check`` and reading a damaged tokenizer.json raise.
    """
    file = view / FILE
    if (view / MODEL).exists() or not file.is_file():
        return False
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    model = tokenizer.get("model", {})
    if model.get("type") != "BPE" or not model.get("byte_fallback"):
        return False
    check(tokenizer_checks.open_tokenizer(view))
    (view / MODEL).write_bytes(_proto(tokenizer))
    _say_prefix(view / "tokenizer_config.json", _adds_prefix(tokenizer))
    return True


def is_read_beside(view: Path) -> bool:
    """Whether the converter may read tokenizer.model alone where a tokenizer.json is beside it."""
    return (view / MODEL).is_file() and (view / FILE).is_file()


def _proto(tokenizer: Mapping[str, Any]) -> bytes:
    from sentencepiece import sentencepiece_model_pb2 as schema

    proto = schema.ModelProto()
    proto.trainer_spec.model_type = schema.TrainerSpec.BPE
    proto.trainer_spec.byte_fallback = True
    proto.normalizer_spec.add_dummy_prefix = _adds_prefix(tokenizer)
    proto.normalizer_spec.remove_extra_whitespaces = False
    added = {int(token["id"]): token for token in tokenizer.get("added_tokens", ())}
    names = {identity: name for name, identity in tokenizer["model"]["vocab"].items()}
    names |= {identity: token["content"] for identity, token in added.items()}
    scores = _scores(tokenizer["model"]["merges"])
    unknown = tokenizer["model"].get("unk_token") or "<unk>"
    kinds = schema.ModelProto.SentencePiece
    for identity in range(max(names) + 1):
        name = names.get(identity, f"[PAD{identity}]")
        piece = proto.pieces.add(piece=name, score=scores.get(name, 0.0))
        if name == unknown:
            piece.type = kinds.UNKNOWN
        elif identity in added:
            piece.type = kinds.CONTROL if added[identity].get("special") else kinds.USER_DEFINED
        elif _BYTE.fullmatch(name):
            piece.type = kinds.BYTE
        elif identity not in names:
            piece.type = kinds.UNUSED
    raw: bytes = proto.SerializeToString()
    return raw


def _scores(merges: list[Any]) -> dict[str, float]:
    """Token -> minus the place of the first merge that makes it, as SentencePiece numbers its own."""
    scores: dict[str, float] = {}
    for place, merge in enumerate(merges):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        scores.setdefault(left + right, -float(place))
    return scores


def _adds_prefix(tokenizer: Mapping[str, Any]) -> bool:
    """Whether a text gets a space before its first word."""
    steps = [tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer")]
    while steps:
        step = steps.pop()
        if not isinstance(step, dict):
            continue
        steps += step.get("normalizers", []) + step.get("pretokenizers", [])
        if step.get("type") == "Prepend":
            return True
        if step.get("type") == "Metaspace":
            return bool(step.get("prepend_scheme", "always") != "never")
    return False


def _say_prefix(file: Path, adds_prefix: bool) -> None:
    """The converter reads that from tokenizer_config.json, not from the model."""
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    config["add_prefix_space"] = adds_prefix
    file.unlink(missing_ok=True)
    file.write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")

"""A Unigram tokenizer.json as llama.cpp's own Unigram tokenizer needs it.

The converter reads such a tokenizer from SentencePiece's file, or from a tokenizer.json whose normalizer is
SentencePiece's compiled table alone. transformers 5 saves tokenizer.json alone, with any normalizer. What
llama.cpp can do of it is a table of replacements, a space before the first word, and spaces merged; so the
normalizer is tried on every character, and what it makes of them becomes the table.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ggq.errors import CheckpointProblem
from ggq.llamacpp.converter_unigram import Vocabulary
from ggq.system import untrusted

_SPACE = "▁"  # how SentencePiece writes a space
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_PADDING_SCORE = -10000.0
_SPACES = (" {2,}", r"\s{2,}", " +", r"\s+")  # Regular expressions that merge spaces
_COMPOSING = ("NFC", "NFKC", "NFD", "NFKD", "Nmt")
_SPECIAL = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
# Characters beyond these planes are private or not assigned.
_LAST_CHARACTER = 0x32FFF
_SURROGATES = range(0xD800, 0xE000)

# SentencePiece's kinds of a token, which are llama.cpp's (enum llama_token_type).
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


def read(folder: Path, rows: int) -> Vocabulary | None:
    """The vocabulary of a tokenizer.json, with at least ``rows`` tokens; None when it is of another kind.

    Raises CheckpointProblem when llama.cpp cannot do what it says.
    """
    file = folder / "tokenizer.json"
    try:
        tokenizer = untrusted.read_object(file, untrusted.TOKENIZER)
    except FileNotFoundError:
        return None
    except (untrusted.Unsound, OSError) as error:
        raise _cannot(f"tokenizer.json cannot be read: {str(error)[:200]}") from error
    model = tokenizer.get("model")
    if not isinstance(model, dict) or model.get("type", "Unigram") != "Unigram":
        return None
    texts, scores = _pieces(model)
    kinds = [BYTE if model.get("byte_fallback") and _BYTE.fullmatch(text) else NORMAL for text in texts]
    names = _special_names(folder)
    kinds = [CONTROL if text in names.values() else kind for text, kind in zip(texts, kinds, strict=True)]
    for token in tokenizer.get("added_tokens") or ():
        place = int(token["id"])
        if not 0 <= place < (1 << 22):
            raise _cannot(f"an added token has the id {place}")
        while len(texts) <= place:
            texts.append(f"[PAD{len(texts)}]")
            scores.append(_PADDING_SCORE)
            kinds.append(UNUSED)
        texts[place] = str(token["content"])
        kinds[place] = CONTROL if token.get("special") else USER_DEFINED
    places = {text: place for place, text in enumerate(texts)}
    special = {kind: places[name] for kind, name in names.items() if name in places}
    if isinstance(model.get("unk_id"), int) and 0 <= model["unk_id"] < len(kinds):
        kinds[model["unk_id"]] = UNKNOWN
        special["unk"] = model["unk_id"]
    for place in range(len(texts), rows):
        texts.append(f"[PAD{place}]")
        scores.append(_PADDING_SCORE)
        kinds.append(UNUSED)
    prefix, merging, by_words = _spaces(tokenizer)
    charsmap = _charsmap(tokenizer.get("normalizer"), by_words=by_words)
    return Vocabulary(tuple(texts), tuple(scores), tuple(kinds), special, prefix, merging, charsmap)


def _pieces(model: Mapping[str, Any]) -> tuple[list[str], list[float]]:
    try:
        texts = [str(text) for text, _ in model["vocab"]]
        scores = [float(score) for _, score in model["vocab"]]
    except (KeyError, TypeError, ValueError) as error:
        raise _cannot("its vocabulary is not a list of texts and scores") from error
    return texts, scores


def _special_names(folder: Path) -> dict[str, str]:
    """The special tokens that tokenizer_config.json names, by kind: tokenizer.json need not list them."""
    try:
        config = untrusted.read_object(folder / "tokenizer_config.json")
    except (untrusted.Unsound, OSError):
        return {}
    found = {kind: config.get(f"{kind}_token") for kind in _SPECIAL}
    return {
        kind: str(token.get("content")) if isinstance(token, dict) else str(token)
        for kind, token in found.items()
        if token
    }


def _steps(step: Any) -> Iterator[Mapping[str, Any]]:
    if not isinstance(step, dict):
        return
    if step.get("type") == "Sequence":
        for inner in (*step.get("normalizers", ()), *step.get("pretokenizers", ())):
            yield from _steps(inner)
    else:
        yield step


def _merges_spaces(step: Mapping[str, Any]) -> bool:
    pattern = step.get("pattern") or {}
    return (
        step.get("type") == "Replace"
        and pattern.get("Regex") in _SPACES
        and step.get("content") in (" ", _SPACE)
    )


def _spaces(tokenizer: Mapping[str, Any]) -> tuple[bool, bool, bool]:
    """Whether a text gets a space before its first word, whether spaces are merged, and whether any white
    space separates words."""
    before = list(_steps(tokenizer.get("normalizer")))
    splits = list(_steps(tokenizer.get("pre_tokenizer")))
    merging = any(_merges_spaces(step) for step in before)
    prefix = any(step.get("type") == "Prepend" and step.get("prepend") == _SPACE for step in before)
    by_words = False
    escaped = any(
        step.get("type") == "Replace"
        and step.get("content") == _SPACE
        and (step.get("pattern") or {}).get("String") == " "
        for step in before
    )
    for step in splits:
        kind = step.get("type")
        if kind == "WhitespaceSplit":
            merging = by_words = True
        elif kind == "Metaspace" and step.get("replacement", _SPACE) == _SPACE:
            escaped = True
            prefix |= step.get("prepend_scheme", "always") != "never" and step.get("add_prefix_space", True)
        else:
            raise _cannot(f"it splits texts by {str(kind)[:40]}, and llama.cpp at spaces only")
    if not escaped:
        raise _cannot(f"its tokens do not write a space as {_SPACE}")
    return prefix, merging, by_words


def _charsmap(normalizer: Any, *, by_words: bool) -> bytes:
    steps = [
        step
        for step in _steps(normalizer)
        if step.get("type") not in ("Strip", "Prepend")
        and not _merges_spaces(step)
        and step.get("content") != _SPACE
    ]
    if [step.get("type") for step in steps] == ["Precompiled"]:
        try:
            return base64.b64decode(str(steps[0].get("precompiled_charsmap") or ""), validate=True)
        except ValueError as error:
            raise _cannot("its precompiled_charsmap is not base64") from error
    if not steps and not by_words:
        return b""
    for step in steps:
        if step.get("type") == "Replace" and "String" not in (step.get("pattern") or {}):
            raise _cannot("its normalizer replaces by a regular expression")
    return _compiled(steps, by_words=by_words)


def _compiled(steps: list[Mapping[str, Any]], *, by_words: bool) -> bytes:
    """The table of what ``steps`` make of every character, and of the sequences that are known to compose."""
    from sentencepiece import SentencePieceNormalizer, sentencepiece_model_pb2
    from tokenizers import Tokenizer, models

    bare = json.loads(Tokenizer(models.Unigram()).to_str())
    bare["normalizer"] = {"type": "Sequence", "normalizers": steps}
    try:
        normalize = Tokenizer.from_str(json.dumps(bare)).normalizer.normalize_str
    except Exception as error:
        raise _cannot(f"its normalizer cannot be read: {str(error)[:120]}") from error
    try:
        sources = {chr(code) for code in range(1, _LAST_CHARACTER) if code not in _SURROGATES}
        if any(step.get("type") in _COMPOSING for step in steps):
            sources |= {source for source, _ in SentencePieceNormalizer(rule_name="nfkc").Decompile()}
        sources |= {step["pattern"]["String"] for step in steps if step.get("type") == "Replace"}
        table = []
        for source in sorted(sources):
            made = normalize(source)
            if by_words:
                made = "".join(" " if letter.isspace() else letter for letter in made)
            if made != source:
                table.append((source, made))
        if not table:
            return b""
        proto = sentencepiece_model_pb2.ModelProto()
        proto.ParseFromString(SentencePieceNormalizer(norm_map=table).serialized_model_proto())
    except (AttributeError, TypeError) as error:
        raise CheckpointProblem(
            "The tokenizer needs a newer package sentencepiece.",
            "Its normalizer has to be compiled for llama.cpp, which sentencepiece 0.2.3 can do.",
            "Run `pip install --upgrade sentencepiece`.",
        ) from error
    return bytes(proto.normalizer_spec.precompiled_charsmap)


def _cannot(why: str) -> CheckpointProblem:
    return CheckpointProblem(
        "llama.cpp cannot do this Unigram tokenizer.",
        f"{why[:1].upper()}{why[1:]}.",
        "Copy sentencepiece.bpe.model from the repository of the model that it was made from, if it has one.",
    )

"""Whether a tokenizer's files are ones that their libraries read, in words where they are not.

What a converter makes of such a file is an exception from anywhere in it. So its own files are read by the
libraries first where that costs nothing more, and after a failure in any case.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ggq.checkpoint.files import bounds_of
from ggq.system import untrusted
from ggq.system.untrusted import Unsound, shown

FILE, MODEL = "tokenizer.json", "tokenizer.model"
SETTINGS, ADDED = "tokenizer_config.json", "added_tokens.json"
VOCABULARY, _MERGES = "vocab.json", "merges.txt"
_TRIAL = "Hello, 안녕 123 🙂\n\n\tdone"
_TEXT_CHARACTERS = 300
# Ids are 32 bits wide in the files; the largest vocabulary of today has 262,144 tokens.
_MOST_TOKENS = 1 << 24


class UnsoundTokenizer(Unsound):
    """A file of the tokenizer is not what it should be; the text names it."""


@contextlib.contextmanager
def reading(file: str, library: str) -> Iterator[None]:
    """Turn what a library raises over a file into UnsoundTokenizer.

    A library that is written in Rust may also panic, which is no Exception.
    """
    try:
        yield
    except (UnsoundTokenizer, MemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        said = first_line(error)
        said = said if said.isprintable() else shown(said, _TEXT_CHARACTERS)
        raise UnsoundTokenizer(f"{file} is not one that {library} reads: {said.rstrip('.')}") from error


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:_TEXT_CHARACTERS]


def require_declared(folder: Path) -> None:
    """Raises UnsoundTokenizer where what the files say of added tokens is not in their form: a token that is
    passed over would be spelled out in silence."""
    if (folder / ADDED).is_file():
        added = _read(folder / ADDED)
        if not isinstance(added, dict):
            raise UnsoundTokenizer(f"{ADDED} is not an object of tokens and their ids")
        for text, identity in added.items():
            if not is_identity(identity):
                raise UnsoundTokenizer(f"{ADDED} gives the token {shown(text)} the id {_json(identity)}")
    if (folder / SETTINGS).is_file():
        _require_decoder(_read(folder / SETTINGS))


def _require_decoder(settings: Any) -> None:
    if not isinstance(settings, dict):
        raise UnsoundTokenizer(f"{SETTINGS} is not an object of settings")
    decoder = settings.get("added_tokens_decoder")
    if decoder is None:
        return
    if not isinstance(decoder, dict):
        raise UnsoundTokenizer(f"{SETTINGS} has an added_tokens_decoder that is not an object")
    for key, token in decoder.items():
        if not (key.isdecimal() and key.isascii() and is_identity(int(key[:20]))):
            raise UnsoundTokenizer(f"{SETTINGS} has an added token of the id {shown(key)}")
        content = token.get("content") if isinstance(token, Mapping) else token
        if not isinstance(content, str):
            raise UnsoundTokenizer(f"{SETTINGS} has an added token without a text: {shown(key)}")


def is_identity(value: Any) -> bool:
    """Whether a value can be the id of a token."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST_TOKENS


def open_tokenizer(folder: Path) -> Any:
    """``tokenizers.Tokenizer`` on the folder's tokenizer.json. Raises UnsoundTokenizer."""
    import tokenizers

    with reading(FILE, "the tokenizers library"):
        return tokenizers.Tokenizer.from_file(str(folder / FILE))


def require(tokenizer: Any) -> None:
    """Raises UnsoundTokenizer for a ``tokenizers.Tokenizer`` that splits no text."""
    with reading(FILE, "the tokenizers library"):
        tokenizer.encode(_TRIAL)
        tokenizer.encode(_TRIAL, add_special_tokens=False)


def find_fault(folder: Path) -> str:
    """What is wrong with a tokenizer's files after a conversion failed; empty: nothing that shows."""
    try:
        require_declared(folder)
        if (folder / FILE).is_file():
            require(open_tokenizer(folder))
        if (folder / MODEL).is_file():
            _require_sentencepiece(folder / MODEL)
        elif not (folder / FILE).is_file() and (folder / VOCABULARY).is_file():
            _require_vocabulary(folder)
    except UnsoundTokenizer as error:
        return str(error)
    return ""


def _require_sentencepiece(file: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    with reading(file.name, "SentencePiece"):
        made = SentencePieceProcessor(model_proto=file.read_bytes())
        for identity in range(made.get_piece_size()):
            made.id_to_piece(identity)
        made.encode(_TRIAL)


def _require_vocabulary(folder: Path) -> None:
    """vocab.json, and merges.txt where it is there."""
    from tokenizers import models

    vocabulary = _read(folder / VOCABULARY, untrusted.TOKENIZER)
    if not isinstance(vocabulary, dict):
        raise UnsoundTokenizer(f"{VOCABULARY} is not an object of tokens and their ids")
    for text, identity in vocabulary.items():
        if not is_identity(identity):
            raise UnsoundTokenizer(f"{VOCABULARY} gives the token {shown(text)} the id {_json(identity)}")
    if (folder / _MERGES).is_file():
        with reading(f"{_MERGES} beside {VOCABULARY}", "the tokenizers library"):
            models.BPE.from_file(str(folder / VOCABULARY), str(folder / _MERGES))


def _read(file: Path, bounds: untrusted.Bounds | None = None) -> Any:
    try:
        return untrusted.read_json(file, bounds or bounds_of(file.name))
    except Unsound as error:
        raise UnsoundTokenizer(f"{file.name} cannot be read: {error}") from error


def _json(value: Any) -> str:
    return shown(json.dumps(value))

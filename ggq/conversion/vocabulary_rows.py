"""Tokens and the rows that a model has for them. Added tokens without a row are left out of the view,
whichever way it is converted; a vocabulary with tokens beyond is refused, and so is a GGUF whose parts do
not agree."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggq.checkpoint.checkpoint import Checkpoint
from ggq.conversion import checkpoint_view, tokenizer_checks
from ggq.conversion.tokenizer_checks import ADDED, FILE, MODEL, SETTINGS, VOCABULARY, is_identity
from ggq.conversion.tokenizer_file import added_in_file, declared, read_json, sentencepiece
from ggq.system.untrusted import Unsound

_EMBEDDING = re.compile(
    r"(?:^|\.)(?:embed_tokens|tok_embeddings|wte|word_embeddings|embed_in|embeddings|embedding|embed)\.weight$"
)
_NAMED = 8
# By the names of a GGUF's tensors.
_TABLE, _HEAD, _TO_TARGET = "token_embd.weight", "output.weight", "d2t"
# Its head is of codes, not of its text's tokens (src/models/qwen3vl.cpp).
_OTHER_HEADS = {"qwen3tts"}


class UnequalRows(Unsound):
    """There are other tokens than rows; the text has the numbers and names."""


def count(given: Checkpoint) -> int | None:
    """Rows of the embedding, by the weights' headers; None where no tensor has such a name."""
    rows = [
        tensor.shape[0]
        for tensor in given.tensors
        if len(tensor.shape) == 2 and _EMBEDDING.search(tensor.name) and "position" not in tensor.name
    ]
    return max(rows, default=None)


def added_texts(folder: Path) -> dict[int, str]:
    """Id -> text of the added tokens that the files have, without reading the vocabulary."""
    found = {int(said["id"]): text for text, said in declared(folder).items()}
    found |= {int(token["id"]): str(token.get("content")) for token in added_in_file(folder)}
    return found


def leave_out(folder: Path, rows: int) -> dict[int, str]:
    """Take the added tokens from id ``rows`` on out of a view's files; returns them."""
    beyond = {identity: text for identity, text in added_texts(folder).items() if identity >= rows}
    if not beyond:
        return {}
    added = read_json(folder / ADDED)
    if added:
        checkpoint_view.replace(
            folder / ADDED, {text: identity for text, identity in added.items() if identity not in beyond}
        )
    settings = read_json(folder / SETTINGS)
    decoder = settings.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        rest = {key: token for key, token in decoder.items() if not (key.isdecimal() and int(key) in beyond)}
        checkpoint_view.replace(folder / SETTINGS, settings | {"added_tokens_decoder": rest})
    whole = read_json(folder / FILE)
    if whole.get("added_tokens"):
        whole["added_tokens"] = [token for token in added_in_file(folder) if token["id"] not in beyond]
        checkpoint_view.replace(folder / FILE, whole)
    return beyond


@dataclass(frozen=True)
class Rows:
    """Of the embedding, None where they are not known; ``left_out``: added tokens without one."""

    count: int | None
    left_out: Collection[str] = ()

    def check(self, tokenizer: Any) -> None:
        """Raises UnsoundTokenizer for a ``tokenizers.Tokenizer`` of tokenizer.json that splits no text, and
        UnequalRows for one whose vocabulary has tokens without a row."""
        tokenizer_checks.require(tokenizer)
        if self.count is not None:
            self._require(tokenizer.get_vocab(with_added_tokens=False), FILE)

    def check_other(self, folder: Path) -> None:
        """The same of a folder without tokenizer.json."""
        if self.count is None or (folder / FILE).is_file():
            return
        if (made := sentencepiece(folder)) is not None:
            pieces = range(self.count, made.get_piece_size())
            self._require({made.id_to_piece(it): it for it in pieces if not made.is_unused(it)}, MODEL)
        elif (folder / VOCABULARY).is_file():
            found = read_json(folder / VOCABULARY)
            self._require({text: it for text, it in found.items() if is_identity(it)}, VOCABULARY)

    def _require(self, vocabulary: Mapping[str, int], source: str) -> None:
        if self.count is None or max(vocabulary.values(), default=-1) < self.count:
            return
        beyond = {
            it: text for text, it in vocabulary.items() if it >= self.count and text not in self.left_out
        }
        if beyond:
            raise UnequalRows(
                f"The vocabulary of {source} has ids up to {max(beyond):,}, the model's embedding "
                f"{self.count:,} rows: {len(beyond):,} of its tokens have none ({_names(beyond)})"
            )


def require_equal(tokens: int, tables: Mapping[str, int], architecture: str) -> None:
    """Raises UnequalRows where a GGUF would list ``tokens`` tokens and has tensors of other ``tables``: their
    rows by their names. llama.cpp does not load such a file."""
    names = [_TABLE] if _TO_TARGET in tables or architecture in _OTHER_HEADS else [_TABLE, _HEAD]
    for name in names:
        if tables.get(name, tokens) != tokens:
            raise UnequalRows(
                f"The vocabulary becomes {tokens:,} tokens in the GGUF, and {name} has {tables[name]:,} rows"
            )


def words(beyond: dict[int, str], rows: int) -> str:
    return (
        f"The tokenizer has ids up to {max(beyond)}, the model's embedding {rows} rows: the tokens without a "
        f"row are left out ({_names(beyond)}), and are spelled out where a text has them."
    )


def _names(tokens: Mapping[int, str]) -> str:
    names = ", ".join(tokens[identity] for identity in sorted(tokens)[:_NAMED])
    return names + (f" and {len(tokens) - _NAMED} more" if len(tokens) > _NAMED else "")

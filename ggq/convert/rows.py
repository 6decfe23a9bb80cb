"""Added tokens that the model has no rows for: left out of the view, whichever way it is converted."""

from __future__ import annotations

import re
from pathlib import Path

from ggq.checkpoint import Checkpoint
from ggq.convert import view
from ggq.convert.tokenizer_file import added_in_file, declared, read_json
from ggq.convert.tokenizer_sound import ADDED, FILE, SETTINGS

_EMBEDDING = re.compile(
    r"(?:^|\.)(?:embed_tokens|tok_embeddings|wte|word_embeddings|embed_in|embeddings|embedding|embed)\.weight$"
)
_NAMED = 8


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
        view.replace(
            folder / ADDED, {text: identity for text, identity in added.items() if identity not in beyond}
        )
    settings = read_json(folder / SETTINGS)
    decoder = settings.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        rest = {key: token for key, token in decoder.items() if not (key.isdecimal() and int(key) in beyond)}
        view.replace(folder / SETTINGS, settings | {"added_tokens_decoder": rest})
    whole = read_json(folder / FILE)
    if whole.get("added_tokens"):
        whole["added_tokens"] = [token for token in added_in_file(folder) if token["id"] not in beyond]
        view.replace(folder / FILE, whole)
    return beyond


def words(beyond: dict[int, str], rows: int) -> str:
    names = ", ".join(beyond[identity] for identity in sorted(beyond)[:_NAMED])
    more = f" and {len(beyond) - _NAMED} more" if len(beyond) > _NAMED else ""
    return (
        f"The tokenizer has ids up to {max(beyond)}, the model's embedding {rows} rows: the tokens without a "
        f"row are left out ({names}{more}), and are spelled out where a text has them."
    )

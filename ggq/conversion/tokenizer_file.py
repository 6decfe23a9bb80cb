"""The checkpoint's own tokenizer, read from its file and through no model's class.

transformers 5 builds a tokenizer out of a class and the vocabulary alone, and leaves the rules of
tokenizer.json aside. So neither the converter nor the check goes through it where there is that file.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggq.conversion import tokenizer_checks
from ggq.conversion.tokenizer_checks import ADDED, FILE, MODEL, SETTINGS, UnsoundTokenizer, is_identity

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class AddedToken:
    """A token that is looked for in a text before anything else, with the conditions of ``tokenizers``."""

    identity: int
    content: str
    special: bool
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False


@dataclass(frozen=True)
class Reference:
    """What is right.

    ``source``: the file that it was read from, or what else was asked; ``encode``: the ids of a text, of
    added tokens as well, without tokens around it; ``whole``: with those around it (None: unknown);
    ``id_of``: a token's id; ``piece``: the text of an ordinary token (empty: it has none of its own);
    ``count``: the highest id and one; ``normalizers``: their types, as tokenizer.json has them.
    """

    source: str
    encode: Callable[[str], list[int]]
    whole: Callable[[str], list[int]] | None
    added: tuple[AddedToken, ...]
    id_of: Callable[[str], int | None]
    piece: Callable[[int], str]
    count: int
    normalizers: tuple[str, ...] = ()


def load(folder: Path) -> tuple[Reference | None, str]:
    """The reference of a checkpoint folder, or None and the reason.

    Raises UnsoundTokenizer for a tokenizer.json that is none.
    """
    try:
        if (folder / FILE).is_file():
            return _of_file(folder), ""
        if (folder / MODEL).is_file():
            found = _of_sentencepiece(folder)
            if found is not None:
                return found, ""
        return _of_transformers(folder), ""
    except UnsoundTokenizer:
        raise
    except Exception as error:
        return None, f"the tokenizer cannot be read: {tokenizer_checks.first_line(error)}"


def sentencepiece(folder: Path) -> Any:
    """SentencePiece itself on the checkpoint's own model, or None."""
    from sentencepiece import SentencePieceProcessor

    with contextlib.suppress(Exception):  # a file of that name need not be SentencePiece's
        return SentencePieceProcessor(model_file=str(folder / MODEL))
    return None


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file, or where it is something else."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        value = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(value, dict):
            return value
    return {}


def text_of(token: Any) -> str | None:
    """The text of a token in a settings file: a string, or an object with its content."""
    content = token.get("content") if isinstance(token, Mapping) else token
    return content if isinstance(content, str) else None


def declared(folder: Path) -> dict[str, Mapping[str, Any]]:
    """Text -> what is said of it: the added tokens that the files beside tokenizer.json have, with ids."""
    found: dict[str, Mapping[str, Any]] = {}
    for text, identity in read_json(folder / ADDED).items():
        if is_identity(identity):
            found[text] = {"id": identity}
    decoder = read_json(folder / SETTINGS).get("added_tokens_decoder")
    for key, token in decoder.items() if isinstance(decoder, Mapping) else ():
        content = text_of(token)
        if content and str(key).isdecimal():
            found[content] = {**token, "id": int(key)} if isinstance(token, Mapping) else {"id": int(key)}
    return found


def complete(tokenizer: Any, folder: Path) -> None:
    """Add to a ``tokenizers.Tokenizer`` the tokens that only the files beside tokenizer.json tell of."""
    import tokenizers

    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    special = [text for text in _named(folder).values() if tokenizer.token_to_id(text) is not None]
    tokenizer.add_special_tokens([text for text in dict.fromkeys(special) if text not in known])
    for text, said in sorted(declared(folder).items(), key=lambda item: int(item[1]["id"])):
        if tokenizer.token_to_id(text) is None:
            token = tokenizers.AddedToken(text, special=bool(said.get("special")), **_flags(said))
            (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])


def for_converter(folder: Path) -> Any:
    """transformers' wrapper around that very tokenizer, as the converter asks for it.

    Raises UnsoundTokenizer.
    """
    from transformers import PreTrainedTokenizerFast

    with tokenizer_checks.reading(FILE, "the tokenizers library"):
        made = PreTrainedTokenizerFast(tokenizer_file=str(folder / FILE), clean_up_tokenization_spaces=False)
    tokenizer_checks.require(made.backend_tokenizer)
    complete(made.backend_tokenizer, folder)
    known = {
        name: text
        for name, text in _named(folder).items()
        if made.backend_tokenizer.token_to_id(text) is not None
    }
    made.add_special_tokens(known)
    return made


def of_transformers(folder: Path) -> tuple[Any, str]:
    """The tokenizer as transformers wraps it, or None and the reason."""
    from transformers import AutoTokenizer

    try:
        if (folder / FILE).is_file():
            return for_converter(folder), ""
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True), ""
    except Exception as error:
        return None, f"transformers does not load the tokenizer: {tokenizer_checks.first_line(error)}"


def begins_with_a_token(folder: Path) -> bool:
    """Whether the rules of tokenizer.json put a token before a text (its post-processor)."""
    post_processor = _value(folder / FILE, "post_processor")
    parts = post_processor.get("processors", [post_processor]) if isinstance(post_processor, dict) else []
    for part in parts if isinstance(parts, list) else []:
        if not isinstance(part, dict):
            continue
        if part.get("type") in ("RobertaProcessing", "BertProcessing"):
            return True
        single = part.get("single")
        if (
            isinstance(single, list)
            and single
            and isinstance(single[0], dict)
            and "SpecialToken" in single[0]
        ):
            return True
    return False


def added_in_file(folder: Path) -> list[dict[str, Any]]:
    """The added tokens of tokenizer.json."""
    value = _value(folder / FILE, "added_tokens")
    tokens = value if isinstance(value, list) else []
    return [token for token in tokens if isinstance(token, dict) and is_identity(token.get("id"))]


def _value(file: Path, key: str) -> Any:
    """A key's value in tokenizer.json (None without it), and no vocabulary, whose objects would be 70 MB."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        text = file.read_text(encoding="utf-8")
        found = re.search(rf'"{key}"\s*:\s*', text)
        return json.JSONDecoder().raw_decode(text, found.end())[0] if found else None
    return None


def _named(folder: Path) -> dict[str, str]:
    """The special tokens by their use, as tokenizer_config.json names them."""
    settings = read_json(folder / SETTINGS)
    named = {name: text_of(settings.get(name)) for name in NAMES}
    return {name: text for name, text in named.items() if text}


_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


def _of_file(folder: Path) -> Reference:
    made = tokenizer_checks.open_tokenizer(folder)
    made.no_padding()
    made.no_truncation()
    complete(made, folder)
    return Reference(
        FILE,
        lambda text: list(made.encode(text, add_special_tokens=False).ids),
        lambda text: list(made.encode(text).ids),
        _added(made.get_added_tokens_decoder()),
        made.token_to_id,
        lambda identity: str(made.decode([identity])),
        1 + max(made.get_vocab(with_added_tokens=True).values(), default=-1),
        _types(made.normalizer),
    )


def _of_sentencepiece(folder: Path) -> Reference | None:
    made = sentencepiece(folder)
    if made is None:
        return None
    said = declared(folder)
    ids = {text: int(token["id"]) for text, token in said.items()}
    pieces = made.get_piece_size()

    def id_of(text: str) -> int | None:
        found = ids.get(text, made.piece_to_id(text))
        return None if found == made.unk_id() and text != made.id_to_piece(found) else int(found)

    return Reference(
        MODEL,
        lambda text: list(made.encode(text)),
        None,
        tuple(
            AddedToken(ids[text], text, bool(token.get("special")), **_flags(token))
            for text, token in sorted(said.items(), key=lambda item: int(item[1]["id"]))
        ),
        id_of,
        lambda identity: "" if identity >= pieces or made.is_control(identity) else made.decode([identity]),
        max((pieces, *(identity + 1 for identity in ids.values()))),
    )


def _of_transformers(folder: Path) -> Reference:
    from transformers import AutoTokenizer

    made = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    vocabulary = made.get_vocab()
    return Reference(
        f"transformers' {type(made).__name__}",
        lambda text: list(made(text, add_special_tokens=False)["input_ids"]),
        lambda text: list(made(text)["input_ids"]),
        _added(made.added_tokens_decoder),
        vocabulary.get,
        lambda identity: str(made.decode([identity])),
        1 + max(vocabulary.values(), default=-1),
    )


def _added(tokens: Mapping[int, Any]) -> tuple[AddedToken, ...]:
    return tuple(
        AddedToken(
            identity,
            token.content,
            token.special,
            token.single_word,
            token.lstrip,
            token.rstrip,
            token.normalized,
        )
        for identity, token in sorted(tokens.items())
    )


def _types(normalizer: Any) -> tuple[str, ...]:
    """The types of a normalizer and of those in it."""
    if normalizer is None:
        return ()
    value = json.loads(normalizer.__getstate__())
    parts = value.get("normalizers") if value.get("type") == "Sequence" else [value]
    return tuple(str(part.get("type")) for part in parts or ())


def _flags(token: Mapping[str, Any]) -> dict[str, bool]:
    return {name: bool(token.get(name)) for name in _FLAGS}

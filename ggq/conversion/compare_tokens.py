"""The GGUF's tokenizer in llama.cpp beside the checkpoint's own: for a conversion's child process."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ggq.conversion import tokenizer_texts
from ggq.conversion.tokenizer_file import AddedToken, Reference
from ggq.llamacpp.inference import LoadedGguf

Encode = Callable[[str], list[int]]

# Added tokens that are tried in other text as well; all are tried by themselves, up to the second number.
_IN_TEXTS, _ALONE = 64, 4096
_PIECES = 200  # tokens of the vocabulary whose own text is tokenized
_NAMED = 5


@dataclass(frozen=True)
class Mismatch:
    """A text and its ids, by the reference and by the GGUF."""

    text: str
    expected: tuple[int, ...]
    found: tuple[int, ...]


def compare(reference: Reference | None, why_not: str, own: Any, loaded: LoadedGguf) -> dict[str, Any]:
    """What ``verification.verdict`` is told. ``own``: SentencePiece on the checkpoint's own model, if any."""
    if reference is None or not loaded.has_tokenizer:
        return {"strings": 0, "why_not": why_not or "the GGUF has no tokenizer"}

    def found(text: str) -> list[int]:
        return loaded.tokenize(text, add_special=False, parse_special=True)

    texts = tokenizer_texts.ordinary() + _pieces(reference)
    wrong = list(_mismatches(texts, reference.encode, found))
    with_added, blamed = _added_texts(reference, found)
    added_ids = {token.identity for token in reference.added}
    refused: list[Mismatch] = []
    remarks: list[str] = []
    spaced, composed, by_sentencepiece = 0, 0, 0
    for one in wrong:
        right, ours = Counter(one.expected), Counter(one.found)
        touched = set((right - ours) | (ours - right)) & added_ids
        if touched:
            for token in reference.added:
                if token.identity in touched:
                    blamed.setdefault(token, one)
        elif own is not None and list(one.found) == list(own.encode(one.text)):
            by_sentencepiece += 1
        elif one.text[:1].isspace() and _differ_by_a_space(one, reference):
            spaced += 1
        elif (form := _form(reference)) and _is_right_composed(one, form, reference, found):
            composed += 1
        else:
            refused.append(one)
    if by_sentencepiece:
        remarks.append(
            f"in {by_sentencepiece} texts the ids of {reference.source} are not those of the checkpoint's "
            "own tokenizer.model; the GGUF has the latter's"
        )
    if spaced:
        remarks.append(
            f"{spaced} texts that begin with a space get other ids there than {reference.source} gives"
        )
    if composed:
        remarks.append(
            f"llama.cpp does not normalize texts in this way ({', '.join(reference.normalizers)}): "
            f"{composed} texts that "
            "are not in that form get other ids; those that are get the right ones"
        )
    if blamed:
        remarks += _blame(blamed, reference)
    wrong_texts = len(wrong) + with_added.wrong
    return {
        "strings": len(texts) + with_added.tried,
        "agree": len(texts) + with_added.tried - wrong_texts,
        "reference": reference.source,
        "added_tokens": len(reference.added),
        "added_tried": with_added.alone,
        "mismatches": [
            {"text": one.text, "expected": list(one.expected), "gguf": list(one.found)} for one in refused
        ],
        "remarks": remarks,
        "specials": _around_differs(reference, loaded),
    }


_UNICODE = {"NFC", "NFKC", "NFD", "NFKD"}
# SentencePiece's table, which composes as NFKC does: SentencePiece and llama.cpp take the longest entry that
# fits, the library tokenizers a letter with its marks where that is short, and its parts where it is not.
_PRECOMPILED = "Precompiled"


@dataclass
class _Count:
    tried: int = 0
    wrong: int = 0
    alone: int = 0


def _mismatches(texts: Iterable[str], expected: Encode, found: Encode) -> Iterable[Mismatch]:
    for text in texts:
        right, ours = expected(text), found(text)
        if right != ours:
            yield Mismatch(text, tuple(right), tuple(ours))


def _pieces(reference: Reference) -> list[str]:
    """The texts of some ordinary tokens: a token that the rules never make shows here."""
    added = {token.identity for token in reference.added}
    ids = [identity for identity in range(reference.count) if identity not in added]
    # SentencePiece writes a space as ▁; a text with that sign itself is none that a model is given.
    texts = (reference.piece(it).replace("▁", " ").strip(" ") for it in tokenizer_texts.sample(ids, _PIECES))
    return [text for text in texts if text and "\ufffd" not in text and not text[0].isspace()]


def _added_texts(reference: Reference, found: Encode) -> tuple[_Count, dict[AddedToken, Mismatch]]:
    """Every added token by itself, and a sample of them in texts: how many, and the first difference of each.

    Where the reference knows none of them (SentencePiece), each has to be found by itself.
    """
    count, blamed = _Count(), dict[AddedToken, Mismatch]()
    alone = [token for token in reference.added if token.content][:_ALONE]
    odd = [token for token in alone if token.single_word or token.lstrip or token.rstrip or token.normalized]
    step = max(1, len(alone) // _IN_TEXTS)
    in_texts = {*odd[:_IN_TEXTS], *alone[::step]}
    count.alone = len(alone)
    for token in alone:
        if reference.whole is None:
            texts, encode = [token.content], _itself(token)
        else:
            texts = list(tokenizer_texts.around(token.content, all_of_them=token in in_texts))
            encode = reference.encode
        for one in _mismatches(texts, encode, found):
            count.wrong += 1
            blamed.setdefault(token, one)
        count.tried += len(texts)
    return count, blamed


def _itself(token: AddedToken) -> Encode:
    return lambda _: [token.identity]


def _blame(blamed: dict[AddedToken, Mismatch], reference: Reference) -> list[str]:
    """A sentence for every way in which added tokens differ, with their names and an example."""
    ways: dict[str, list[AddedToken]] = {}
    for token, one in blamed.items():
        ways.setdefault(_lacks(token, one, reference), []).append(token)
    sentences = []
    for way, tokens in ways.items():
        names = ", ".join(repr(token.content) for token in tokens[:_NAMED])
        more = f" and {len(tokens) - _NAMED} more" if len(tokens) > _NAMED else ""
        one = blamed[tokens[0]]
        sentences.append(
            f"the added token{'s' if len(tokens) > 1 else ''} {names}{more}: {way}; {one.text[:40]!r} is "
            f"{short(one.expected)} by {reference.source} and {short(one.found)} in the GGUF"
        )
    return sentences


def _lacks(token: AddedToken, one: Mismatch, reference: Reference) -> str:
    if token.identity not in one.found and token.identity in one.expected:
        return "llama.cpp does not find it there"
    if token.single_word:
        return "it stands for a whole word only (single_word), and llama.cpp finds it inside words as well"
    if token.lstrip or token.rstrip:
        flags = [name for name in ("lstrip", "rstrip") if getattr(token, name)]
        return f"it takes the spaces beside it ({', '.join(flags)}), and llama.cpp leaves them"
    if token.normalized and reference.normalizers:
        return "it is looked for in the normalized text, and llama.cpp looks for it in the text as it is"
    if len(one.found) != len(one.expected) or token.identity in one.found:
        return "llama.cpp splits the text beside it otherwise (a space, or another token that it finds first)"
    return "llama.cpp gives other ids"


def _differ_by_a_space(one: Mismatch, reference: Reference) -> bool:
    """Whether the texts agree behind their first word, or the GGUF's ids are the reference's for one more
    space at the beginning: ``Metaspace`` puts none before a text that has one, SentencePiece does."""
    if not one.text.strip():
        return False
    tail = reference.encode(f"a{one.text}")[-2:]
    if tail == list(one.found[-len(tail) :]):
        return True
    before = reference.encode("a")
    whole = reference.encode(f"a {one.text}")
    return whole == before + list(one.found)


def _is_right_composed(one: Mismatch, form: Any, reference: Reference, found: Encode) -> bool:
    """Whether a text differs for its form alone: in the form of the tokenizer it gets the right ids."""
    composed = unicodedata.normalize(form, one.text)
    ours = found(composed)
    if _PRECOMPILED in reference.normalizers and composed != one.text:
        return ours == reference.encode(composed)
    return tuple(ours) == one.expected


def _form(reference: Reference) -> Any:
    """The form of Unicode that the tokenizer brings texts into, or None."""
    if _PRECOMPILED in reference.normalizers:
        return "NFKC"
    return next((form for form in reference.normalizers if form in _UNICODE), None)


def _around_differs(reference: Reference, loaded: LoadedGguf) -> dict[str, Any] | None:
    if reference.whole is None:
        return None
    text = "Hello, world!"
    wanted = around(reference.whole(text), reference.encode(text))
    ours = around(loaded.tokenize(text, add_special=True), loaded.tokenize(text, add_special=False))
    return None if ours == wanted else {"expected": wanted, "gguf": ours}


def around(whole: list[int], body: list[int]) -> list[list[int]]:
    """The tokens before and after ``body`` in ``whole``."""
    for start in range(len(whole) - len(body) + 1):
        if whole[start : start + len(body)] == body:
            return [whole[:start], whole[start + len(body) :]]
    return [whole, []]


def short(value: Sequence[int]) -> str:
    text = str(list(value))
    return text if len(text) <= 60 else f"{text[:57]}..."

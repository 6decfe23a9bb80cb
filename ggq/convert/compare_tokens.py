"""The GGUF's tokenizer in llama.cpp beside the checkpoint's own: for a conversion's child process."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from ggq.convert import tokenizer_model
from ggq.llamacpp.witness import Witness

# None begins with a space: there transformers 5 and SentencePiece, which llama.cpp follows, go two ways.
TEXTS = (
    "Hello, world! The quick brown fox jumps over 13 lazy dogs.",
    "안녕하세요, 세계! 오늘은 12월 3일입니다.",
    "naïve café, Übergröße, 東京タワー, Привет",
    "👩‍👩‍👧‍👦 🚀 ok ✅🏽",
    "def f(x):\n    return x**2  # done\n\nif __name__ == '__main__':\n\tprint(f(3))\n",
    "runs,   inner    runs \t\t tabs \n\n\n lines  ",
    "3.14159 1,000,000 2024-01-01 0xDEADBEEF",
    "It's we'll THEY'D I'M don't o'clock",
)


def sentencepiece(folder: Path) -> Any:
    """SentencePiece itself on the checkpoint's own model, or None."""
    from sentencepiece import SentencePieceProcessor

    with contextlib.suppress(Exception):  # a file of that name need not be SentencePiece's
        return SentencePieceProcessor(model_file=str(folder / tokenizer_model.MODEL))
    return None


def compare(tokenizer: Any, why_not: str, reference: Any, witness: Witness) -> dict[str, Any]:
    if tokenizer is None or not witness.has_tokenizer:
        return {"strings": 0, "why_not": why_not or "the GGUF has no tokenizer"}
    mismatches = []
    by_sentencepiece = 0
    for text in TEXTS:
        expected = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        found = witness.tokenize(text, add_special=False)
        if found != expected:
            # transformers 5 builds its own tokenizer out of a tokenizer.model, and not always the same one.
            if reference is not None and found == list(reference.encode(text)):
                by_sentencepiece += 1
                continue
            mismatches.append({"text": text, "transformers": expected, "gguf": found})
        elif tokenizer.decode(expected) == text != witness.detokenize(found):
            mismatches.append({"text": text, "transformers": text, "gguf": witness.detokenize(found)})
    text = TEXTS[0]
    wanted = _around(
        list(tokenizer(text)["input_ids"]), list(tokenizer(text, add_special_tokens=False)["input_ids"])
    )
    around = _around(witness.tokenize(text, add_special=True), witness.tokenize(text, add_special=False))
    return {
        "strings": len(TEXTS),
        "mismatches": mismatches,
        "by_sentencepiece": by_sentencepiece,
        "specials": None if around == wanted else {"transformers": wanted, "gguf": around},
    }


def _around(whole: list[int], body: list[int]) -> list[list[int]]:
    """The tokens before and after ``body`` in ``whole``."""
    for start in range(len(whole) - len(body) + 1):
        if whole[start : start + len(body)] == body:
            return [whole[:start], whole[start + len(body) :]]
    return [whole, []]

"""A made-up tokenizer of the size and kind of Llama 3's: byte-level BPE, 128,000 tokens, 280,147 merges."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

TOKENS, MERGES, SPECIAL = 128_000, 280_147, 256
_LETTERS = "etaoinĠ"  # all words of them up to six letters: 137,256
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write(folder: Path) -> Path:
    """``tokenizer.json`` and ``tokenizer_config.json`` in ``folder``."""
    from tokenizers.pre_tokenizers import ByteLevel

    folder.mkdir()
    alphabet = sorted(ByteLevel.alphabet())
    words = ("".join(word) for length in range(2, 7) for word in itertools.product(_LETTERS, repeat=length))
    tokens = [*alphabet, *itertools.islice(words, TOKENS - len(alphabet))]
    longer = tokens[len(alphabet) :]
    splits = (f"{word[:cut]} {word[cut:]}" for cut in range(1, 6) for word in longer if cut < len(word))
    special = [
        {
            "id": TOKENS + number,
            "content": ("<|begin_of_text|>", "<|end_of_text|>")[number]
            if number < 2
            else f"<|reserved_special_token_{number}|>",
            "special": True,
            **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
        }
        for number in range(SPECIAL)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": _WORDS}, "behavior": "Isolated", "invert": False}
    made = {
        "version": "1.0",
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "ignore_merges": True,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": list(itertools.islice(splits, MERGES)),
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(made, ensure_ascii=False, indent=2))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|end_of_text|>",
        "added_tokens_decoder": {
            token["id"]: {k: v for k, v in token.items() if k != "id"} for token in special
        },
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder

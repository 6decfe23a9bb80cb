"""Small checkpoints made on the spot: random weights of any architecture that transformers has, with a small
tokenizer that is trained here. Nothing outside the repository is needed."""

from __future__ import annotations

import functools
import json
import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

SMALL: Mapping[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
END = "<|endoftext|>"
# Rules that a byte-level BPE splits a text by, as tokenizer.json has them.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEXT = (
    "Once upon a time there was a small model, and in 2023 it counted 12345 sheep: 1, 2, 3, 10, 100, 2024.\n"
    "def add(left, right):\n    return left + right  # done\n\n"
    "Income apportionment under Section 5A of the law.\n"
    "안녕하세요, 세계! 오늘은 12월 3일입니다. 개인정보보호법에 따라.\n"
    "naïve café, Übergröße, Привет.\n"
)


@functools.cache
def _vocabulary(rules: str) -> str:
    """tokenizer.json of a byte-level BPE of 600 tokens at most."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel
    known: dict[str, list[Any]] = {
        "gpt2": [byte_level(add_prefix_space=False)],
        "smollm": [pre_tokenizers.Digits(individual_digits=True), byte_level(add_prefix_space=False)],
    }
    steps = known.get(rules) or [
        pre_tokenizers.Split(Regex(rules), "isolated"),
        byte_level(add_prefix_space=False, use_regex=False),
    ]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=[END], initial_alphabet=byte_level.alphabet(), show_progress=False
    )
    # Numbers of several digits are tokens, so that a rule that keeps digits together shows.
    tokenizer.train_from_iterator([_TEXT] * 3, trainer)
    return str(tokenizer.to_str())


@functools.cache
def sentencepiece_model(*, prefix: bool = True) -> bytes:
    """tokenizer.model of a SentencePiece BPE with byte fallback, as Llama's: unknown 0, start 1, end 2.

    ``prefix``: a space is put before the first word.
    """
    import io

    import sentencepiece

    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_TEXT.splitlines() * 3), model_writer=made, model_type="bpe", vocab_size=500,
        hard_vocab_limit=False, byte_fallback=True, character_coverage=1.0, split_digits=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=prefix,
        allow_whitespace_only_pieces=True, minloglevel=2,
    )  # fmt: skip
    return made.getvalue()


def tokenizer(rules: str = "gpt2", added: Sequence[Any] = (), *, nfc: bool = False) -> Any:
    """A ``tokenizers.Tokenizer``. ``rules``: gpt2, smollm, or a regular expression."""
    from tokenizers import Tokenizer, normalizers

    made = Tokenizer.from_str(_vocabulary(rules))
    if nfc:
        made.normalizer = normalizers.NFC()
    for token in added:
        (made.add_special_tokens if token.special else made.add_tokens)([token])
    return made


def save_tokenizer(
    folder: Path, made: Any, tokenizer_class: str = "PreTrainedTokenizerFast", **more: Any
) -> None:
    """tokenizer.json and tokenizer_config.json."""
    made.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": tokenizer_class, "bos_token": END, "eos_token": END, **more}
    write_json(folder / "tokenizer_config.json", settings)


def save_wordpiece(folder: Path) -> int:
    """vocab.txt alone, and settings that name no special tokens; returns how many tokens it has."""
    letters = [*string.ascii_letters, *string.digits]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, *letters, *(f"##{letter}" for letter in letters), *string.punctuation, "Hello"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "do_lower_case": False})
    return len(words)


def save_unigram(folder: Path, normalizer: Any = None, *, added: bool = True) -> int:
    """tokenizer.json of a Unigram, and its settings; returns the count of tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces = [(name, 0.0) for name in special] + [("▁", -3.0), ("▁hello", -2.0), ("안녕", -2.5)]
    pieces += [(letter, -5.0) for letter in string.ascii_lowercase + string.digits + ".,!?안녕하세요"]
    made = Tokenizer(models.Unigram(pieces, unk_id=3))
    if normalizer is not None:
        made.normalizer = normalizer
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    if added:
        made.add_special_tokens(special)
    made.save(str(folder / "tokenizer.json"))
    names = dict(zip(("bos", "pad", "eos", "unk", "cls", "sep"), [*special, "<s>", "</s>"], strict=True))
    settings = {f"{kind}_token": name for kind, name in names.items()}
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "XLMRobertaTokenizerFast", **settings})
    return int(made.get_vocab_size())


def model(
    folder: Path, family: str = "Llama", *, dtype: str = "float32", seed: int = 0, **settings: Any
) -> Any:
    """Config and random weights of ``{family}ForCausalLM`` (or of the class ``family``, where that is one);
    returns transformers' model. ``config``: the config's class, where it is not named after the family."""
    import torch
    import transformers

    config_class = getattr(transformers, settings.pop("config", f"{family}Config"))
    model_class = getattr(transformers, f"{family}ForCausalLM", None) or getattr(transformers, family)
    torch.manual_seed(seed)
    config = config_class(**{**SMALL, "bos_token_id": 0, "eos_token_id": 0, **settings})
    made = model_class(config).to(getattr(torch, dtype))
    made.save_pretrained(folder)
    return made


def llama(
    folder: Path, made: Any = None, *, tokenizer_class: str = "PreTrainedTokenizerFast", **settings: Any
) -> Path:
    """A whole checkpoint of the commonest kind; returns ``folder``."""
    made = made or tokenizer()
    model(folder, "Llama", vocab_size=made.get_vocab_size(), **settings)
    save_tokenizer(folder, made, tokenizer_class)
    return folder


def write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")


def edit(file: Path, **keys: Any) -> None:
    """Set keys of a JSON file; a value of ``...`` removes the key."""
    value = {**json.loads(file.read_text(encoding="utf-8")), **keys}
    write_json(file, {key: item for key, item in value.items() if item is not ...})


def edit_tensors(
    folder: Path, change: Callable[[dict[str, Any]], None], metadata: Mapping[str, str] | None = None
) -> None:
    """Change the dictionary of a checkpoint's tensors in place, and save it again."""
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    change(tensors)
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(whole, file, dict(metadata or {"format": "pt"}))

"""What the converter misses of a BERT's tokenizer: a tokenizer.json, where it reads how a text is normalized,
and the names of the special tokens, without which it lets llama.cpp take the ids of another vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ggq.system import untrusted

VOCABULARY, TOKENIZER, CONFIG = "vocab.txt", "tokenizer.json", "tokenizer_config.json"
# Others have a vocab.txt, too, and split Japanese by a dictionary, or merge pairs of bpe.codes.
_CLASSES = ("Bert", "DistilBert", "Electra", "MPNet", "Retribert", "MobileBert", "LayoutLM", "Funnel")
_SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
_FILE_BYTES = 32 << 20


def complete(view: Path) -> bool:
    """Write tokenizer.json into the view where it has a BERT's vocab.txt alone; name BERT's special tokens
    where the settings do not. Returns whether a tokenizer.json was made.

    Raises Unsound and OSError for files that cannot be read.
    """
    made = _complete(view)
    if (view / TOKENIZER).is_file():
        _name_special(view)
    return made


def _name_special(view: Path) -> None:
    model = untrusted.read_object(view / TOKENIZER, untrusted.TOKENIZER).get("model")
    if not isinstance(model, dict) or model.get("type") != "WordPiece":
        return
    config = untrusted.read_object(view / CONFIG) if (view / CONFIG).is_file() else {}
    missing = {
        f"{kind}_token": usual
        for kind, usual in _SPECIAL.items()
        if not config.get(f"{kind}_token") and usual in model.get("vocab", ())
    }
    if missing:
        (view / CONFIG).unlink(missing_ok=True)
        (view / CONFIG).write_text(json.dumps({**config, **missing}), encoding="utf-8")


def _complete(view: Path) -> bool:
    if (view / TOKENIZER).exists() or not (view / VOCABULARY).is_file():
        return False
    config = untrusted.read_object(view / CONFIG) if (view / CONFIG).is_file() else {}
    name = str(config.get("tokenizer_class") or "BertTokenizer")
    if name.removesuffix("Fast").removesuffix("Tokenizer") not in _CLASSES:
        return False
    lines = untrusted.read_bytes(view / VOCABULARY, _FILE_BYTES).decode("utf-8", "replace").split("\n")
    if lines and not lines[-1]:
        lines.pop()
    vocabulary = {line.rstrip("\r"): place for place, line in enumerate(lines)}
    _tokenizer(vocabulary, config).save(str(view / TOKENIZER))
    return True


def _tokenizer(vocabulary: dict[str, int], config: dict[str, Any]) -> Any:
    """BERT's own tokenizer, with its defaults."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    names = {kind: _name(config.get(f"{kind}_token")) or usual for kind, usual in _SPECIAL.items()}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token=names["unk"]))
    made.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=bool(config.get("tokenize_chinese_chars", True)),
        strip_accents=config.get("strip_accents"),
        lowercase=bool(config.get("do_lower_case", True)),
    )
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    known = [name for name in names.values() if name in vocabulary]
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in known])
    first, last = names["cls"], names["sep"]
    if first in vocabulary and last in vocabulary:
        made.post_processor = processors.TemplateProcessing(
            single=f"{first} $A {last}",
            pair=f"{first} $A {last} $B:1 {last}:1",
            special_tokens=[(first, vocabulary[first]), (last, vocabulary[last])],
        )
    return made


def _name(token: Any) -> str:
    return str(token.get("content") or "") if isinstance(token, dict) else str(token or "")

"""A Unigram vocabulary that ggq read, given to llama.cpp's converter in the place of its own reading."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SENTENCEPIECE = "sentencepiece.bpe.model"


@dataclass(frozen=True)
class Vocabulary:
    """What the GGUF gets: each token's text, score and kind (a number of llama_token_type); ``special``: the
    ids of bos, eos, unk and the like; ``charsmap``: SentencePiece's compiled table of replacements, empty for
    none."""

    texts: tuple[str, ...]
    scores: tuple[float, ...]
    kinds: tuple[int, ...]
    special: Mapping[str, int]
    add_prefix: bool
    merge_spaces: bool
    charsmap: bytes


def give(read: Callable[[Path, int], Vocabulary | None]) -> None:
    """From now on have the converter of this process take what ``read`` returns (of a folder and the rows of
    the embedding) where a checkpoint has no SentencePiece file."""
    with contextlib.suppress(ImportError, AttributeError):
        import gguf
        from conversion.bert import BertModel  # type: ignore[import-not-found]

        own = BertModel._xlmroberta_set_vocab

        def set_vocab(self: Any) -> None:
            folder = Path(self.dir_model)
            rows = int(self.hparams.get("vocab_size") or 0)
            has_own = (folder / _SENTENCEPIECE).is_file()
            found = None if has_own else read(folder, rows)
            if found is None:
                own(self)
                return
            writer = self.gguf_writer
            writer.add_tokenizer_model("t5")
            writer.add_tokenizer_pre("default")
            writer.add_token_list([text.encode("utf-8", "replace") for text in found.texts])
            writer.add_token_scores(list(found.scores))
            writer.add_token_types(list(found.kinds))
            writer.add_add_space_prefix(found.add_prefix)
            writer.add_token_type_count(self.hparams.get("type_vocab_size", 1))
            writer.add_remove_extra_whitespaces(found.merge_spaces)
            if found.charsmap:
                writer.add_precompiled_charsmap(found.charsmap)
            special = gguf.SpecialVocab(folder, n_vocab=len(found.texts))
            # It finds the ids of added tokens only, and llama.cpp has other defaults.
            special.special_token_ids.update(found.special)
            special.add_to_gguf(writer)

        BertModel._xlmroberta_set_vocab = set_vocab

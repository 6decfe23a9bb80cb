"""Tokens, rows of the embedding and rows of the head agree, or the numbers and names are told."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import pytest

from ggq.checkpoint import checkpoint
from ggq.conversion import convert, convert_hollow, tokenizer_checks, vocabulary_rows
from ggq.conversion.vocabulary_rows import Rows, UnequalRows
from ggq.errors import CheckpointProblem
from ggq.llamacpp.toolchain import Toolchain
from ggq.session import Session
from ggq.system import files

HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"


def resize(folder: Path, name: str, count: int) -> None:
    """Cut or repeat a tensor's rows."""

    def change(tensors: dict[str, Any]) -> None:
        whole = tensors[name]
        tensors[name] = whole.repeat(2, 1)[:count]

    checkpoints.edit_tensors(folder, change)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return checkpoints.llama(tmp_path / "model", checkpoints.tokenizer(), tie_word_embeddings=False)


@pytest.mark.torch
def test_a_head_of_other_rows_is_refused_by_its_header(folder: Path) -> None:
    count = vocabulary_rows.count(checkpoint.read(folder))
    assert count
    checkpoint.require_convertible(checkpoint.read(folder))
    resize(folder, HEAD, count - 8)
    given = checkpoint.read(folder)
    with pytest.raises(CheckpointProblem, match="do not fit together") as caught:
        checkpoint.require_convertible(given)
    assert f"{TABLE} has {count:,} rows, {HEAD} {count - 8:,}" in caught.value.why
    assert caught.value.why in checkpoint.remark(given)
    # A draft model's head has fewer rows, and a table to the target's.
    checkpoints.edit_tensors(folder, lambda it: it.update(d2t=it["model.norm.weight"].int()))
    checkpoint.require_convertible(checkpoint.read(folder))


def test_a_vocabulary_beyond_the_embedding(tmp_path: Path) -> None:
    from tokenizers import AddedToken

    made = checkpoints.tokenizer()
    count = made.get_vocab_size()
    Rows(count).check(made)
    Rows(None).check(made)
    made.add_tokens([AddedToken("<added>")])  # others look after these
    Rows(count).check(made)
    last = [made.id_to_token(count - 2), made.id_to_token(count - 1)]
    with pytest.raises(UnequalRows) as caught:
        Rows(count - 2).check(made)
    assert str(caught.value) == (
        f"The vocabulary of tokenizer.json has ids up to {count - 1:,}, the model's embedding {count - 2:,} "
        f"rows: 2 of its tokens have none ({', '.join(last)})"
    )
    Rows(count - 2, frozenset(last)).check(made)


def test_a_vocabulary_in_other_files(tmp_path: Path) -> None:
    checkpoints.write_json(tmp_path / "vocab.json", {"a": 0, "b": 1, "c": 7})
    Rows(8).check_other(tmp_path)
    with pytest.raises(UnequalRows, match=r"vocab\.json has ids up to 7, .* 7 rows: 1 .*\(c\)"):
        Rows(7).check_other(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(checkpoints.sentencepiece_model())
    Rows(500).check_other(tmp_path)
    with pytest.raises(UnequalRows, match=r"tokenizer\.model has ids up to 4\d\d, .* 300 rows: "):
        Rows(300).check_other(tmp_path)


@pytest.mark.parametrize(
    ("tables", "architecture", "name"),
    [
        ({"token_embd.weight": 8, "output.weight": 8, "blk.0.attn_q.weight": 64}, "llama", ""),
        ({"token_embd.weight": 9}, "llama", "token_embd.weight has 9 rows"),
        ({"token_embd.weight": 8, "output.weight": 4}, "llama", "output.weight has 4 rows"),
        ({"token_embd.weight": 8, "output.weight": 4}, "qwen3tts", ""),
        ({"token_embd.weight": 8, "output.weight": 4, "d2t": 4}, "eagle3", ""),
    ],
)
def test_a_gguf_of_other_rows(tables: dict[str, int], architecture: str, name: str) -> None:
    told = pytest.raises(UnequalRows, match=f"becomes 8 tokens in the GGUF, and {name}")
    with told if name else contextlib.nullcontext():
        vocabulary_rows.require_equal(8, tables, architecture)


def _vocabulary(folder: Path) -> str:
    """As many rows as before, and a token more in the vocabulary itself."""
    file = folder / "tokenizer.json"
    whole = json.loads(file.read_text(encoding="utf-8"))
    whole["model"]["vocab"]["more"] = count = len(whole["model"]["vocab"])
    checkpoints.write_json(file, whole)
    return rf"tokenizer\.json has ids up to {count}, .* {count} rows: 1 of its tokens have none \(more\)"


def _config(folder: Path) -> str:
    """The config says more than there are rows: the converter fills the vocabulary up to that."""
    count = json.loads((folder / "config.json").read_text())["vocab_size"]
    checkpoints.edit(folder / "config.json", vocab_size=count + 24)
    return f"becomes {count + 24} tokens in the GGUF, and token_embd.weight has {count} rows"


@pytest.mark.tool
@pytest.mark.parametrize("change", [_vocabulary, _config])
def test_what_does_not_fit_is_told_without_the_weights(
    change: Callable[[Path], str], folder: Path, toolchain: Toolchain, tmp_path: Path
) -> None:
    words = change(folder)
    with files.staging(tmp_path) as staging, pytest.raises(CheckpointProblem, match=words) as caught:
        convert_hollow(folder, staging / "out.gguf", session=Session(toolchain))
    assert "does not fit the model's weights" in caught.value.what


@pytest.mark.tool
def test_the_same_of_a_sentencepiece_vocabulary(toolchain: Toolchain, tmp_path: Path) -> None:
    """The converter leaves such tokens out in silence."""
    checkpoints.model(tmp_path / "model", "Llama", vocab_size=400)
    (tmp_path / "model" / "tokenizer.model").write_bytes(checkpoints.sentencepiece_model())
    checkpoints.write_json(
        tmp_path / "model" / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer"}
    )
    assert not tokenizer_checks.find_fault(tmp_path / "model")
    with pytest.raises(CheckpointProblem, match=r"tokenizer\.model has ids up to .* 400 rows"):
        convert(tmp_path / "model", tmp_path / "out.gguf", session=Session(toolchain))

"""A tokenizer's files that their libraries do not read end a conversion with words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import pytest

from ggq.conversion import convert, convert_hollow, tokenizer_checks, tokenizer_file
from ggq.conversion.tokenizer_checks import UnsoundTokenizer
from ggq.errors import CheckpointProblem
from ggq.llamacpp.toolchain import Toolchain
from ggq.session import Session
from ggq.system import files

Change = Callable[[dict[str, Any]], None]


def _no_id(whole: dict[str, Any]) -> None:
    whole["model"]["vocab"]["a"] = None


def _no_merge(whole: dict[str, Any]) -> None:
    whole["model"]["merges"][0] = ["no such token", "nor this"]


def _no_kind(whole: dict[str, Any]) -> None:
    whole["pre_tokenizer"] = {"type": "Unheard"}


def _no_model(whole: dict[str, Any]) -> None:
    del whole["model"]


def _no_list(whole: dict[str, Any]) -> None:
    whole["added_tokens"] = {"a": 1}


def _changed(folder: Path, change: Change) -> None:
    file = folder / "tokenizer.json"
    whole = json.loads(file.read_text(encoding="utf-8"))
    change(whole)
    checkpoints.write_json(file, whole)


@pytest.mark.torch
@pytest.mark.parametrize("change", [_no_id, _no_merge, _no_kind, _no_model, _no_list])
def test_a_tokenizer_json_of_another_form(tmp_path: Path, change: Change) -> None:
    checkpoints.save_tokenizer(tmp_path, checkpoints.tokenizer())
    assert not tokenizer_checks.find_fault(tmp_path)
    _changed(tmp_path, change)
    words = "tokenizer.json is not one that the tokenizers library reads: "
    assert tokenizer_checks.find_fault(tmp_path).startswith(words)
    for reader in (tokenizer_file.for_converter, tokenizer_file.load):
        with pytest.raises(UnsoundTokenizer, match=words):
            reader(tmp_path)


@pytest.mark.parametrize("content", [b"\x0a\xff\xff\xff\xff\x0f" + b"x" * 40, b"no model at all", b"\0" * 64])
def test_a_tokenizer_model_of_another_form(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(checkpoints.sentencepiece_model())
    assert not tokenizer_checks.find_fault(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(content)
    assert "tokenizer.model is not one that SentencePiece reads" in tokenizer_checks.find_fault(tmp_path)


def test_pieces_that_are_no_text(tmp_path: Path) -> None:
    whole = checkpoints.sentencepiece_model()
    (tmp_path / "tokenizer.model").write_bytes(whole.replace(b"<0x41>", b"<0x\xff1>", 1))
    assert "SentencePiece" in tokenizer_checks.find_fault(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("added_tokens.json", ["<x>"], "added_tokens.json is not an object"),
        ("added_tokens.json", {"<x>": "5"}, "gives the token '<x>' the id "),
        ("added_tokens.json", {"<x>": -1}, "gives the token '<x>' the id '-1'"),
        ("added_tokens.json", {"<x>": 1 << 31}, "gives the token '<x>' the id '2147483648'"),
        ("tokenizer_config.json", {"added_tokens_decoder": ["<x>"]}, "that is not an object"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "y"}}}, "of the id 'x'"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"5": {}}}, "without a text: '5'"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"9" * 5000: {"content": "y"}}}, "of the id '99"),
    ],
)
def test_added_tokens_that_cannot_be_taken(tmp_path: Path, file: str, content: Any, words: str) -> None:
    checkpoints.write_json(tmp_path / file, content)
    with pytest.raises(UnsoundTokenizer) as caught:
        tokenizer_checks.require_declared(tmp_path)
    assert words in str(caught.value) and str(caught.value).startswith(file)


@pytest.mark.parametrize(
    ("vocabulary", "merges", "words"),
    [
        ({"a": 0, "b": None}, "a b\n", "vocab.json gives the token 'b' the id 'null'"),
        (["a"], "a b\n", "vocab.json is not an object"),
        ({"a": 0, "b": 1}, "#version: 0.2\na b\n", "merges.txt beside vocab.json"),
        ({"a": 0, "b": 1, "ab": 2}, "#version: 0.2\nab\n", "merges.txt beside vocab.json"),
    ],
)
def test_a_vocabulary_and_its_merges(tmp_path: Path, vocabulary: Any, merges: str, words: str) -> None:
    checkpoints.write_json(tmp_path / "vocab.json", vocabulary)
    (tmp_path / "merges.txt").write_text(merges, encoding="utf-8")
    assert words in tokenizer_checks.find_fault(tmp_path)


def test_a_panic_is_an_error(tmp_path: Path) -> None:
    class PanicException(BaseException):
        pass

    words = "a is not one that b reads: index out of range"
    with pytest.raises(UnsoundTokenizer, match=words), tokenizer_checks.reading("a", "b"):
        raise PanicException("index out of range\nmore")
    with pytest.raises(KeyboardInterrupt), tokenizer_checks.reading("a", "b"):
        raise KeyboardInterrupt


@pytest.mark.tool
def test_a_conversion_says_which_file(toolchain: Toolchain, tmp_path: Path) -> None:
    folder = checkpoints.llama(tmp_path / "model", checkpoints.tokenizer())
    _changed(folder, _no_id)
    with pytest.raises(CheckpointProblem) as caught:
        convert(folder, tmp_path / "out.gguf", session=Session(toolchain))
    assert str(folder) in caught.value.what
    assert (
        "tokenizer.json is not one that the tokenizers library reads: invalid type: null" in caught.value.why
    )
    # With a tokenizer.model the converter does not look into tokenizer.json; the check would.
    (folder / "tokenizer.model").write_bytes(checkpoints.sentencepiece_model())
    with files.staging(tmp_path) as staging, pytest.raises(CheckpointProblem, match=r"tokenizer\.json is"):
        convert_hollow(folder, staging / "out.gguf", session=Session(toolchain))

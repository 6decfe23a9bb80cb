"""A GGUF's tokens are those of the checkpoint's own files, or the difference is told by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import checkpoints
import pytest

from ggq.checkpoint import checkpoint
from ggq.conversion import Conversion, convert, stop_tokens, tokenizer_file, vocabulary_rows
from ggq.gguf import file as gguf_file
from ggq.llamacpp.inference import LoadedGguf
from ggq.llamacpp.toolchain import Toolchain
from ggq.session import Session

WORD, SINGLE = "Section 5A", "apportionment"


@pytest.fixture
def tokens(toolchain: Toolchain, tmp_path: Path) -> Any:
    """The ids of a text in a GGUF, special tokens parsed."""

    def of(made: Conversion, text: str) -> list[int]:
        with LoadedGguf(toolchain, made.output, 1, weights=False) as loaded:
            return loaded.tokenize(text, add_special=False, parse_special=True)

    return of


@pytest.mark.tool
@pytest.mark.parametrize("tokenizer_class", ["GPT2Tokenizer", "LlamaTokenizerFast"])
def test_the_rules_are_those_of_tokenizer_json(
    tokenizer_class: str, toolchain: Toolchain, tmp_path: Path, tokens: Any
) -> None:
    """Whatever the class says that it should be: transformers 5 would build another tokenizer."""
    own = checkpoints.tokenizer("smollm")
    folder = checkpoints.llama(tmp_path / "model", own, tokenizer_class=tokenizer_class)
    made = convert(folder, tmp_path / "out.gguf", session=Session(toolchain))
    checked = made.verification
    assert gguf_file.read(made.output).text("tokenizer.ggml.pre") == "smollm"
    assert tokens(made, "x 12345 done") == own.encode("x 12345 done").ids
    assert checked.tokenizer_reference == "tokenizer.json" and not checked.warnings
    assert checked.tokenizer_strings == checked.tokenizer_compared


@pytest.mark.tool
def test_added_tokens_and_what_ends_a_turn(toolchain: Toolchain, tmp_path: Path, tokens: Any) -> None:
    from tokenizers import AddedToken

    ends = [AddedToken(text, special=True, normalized=False) for text in ("</끝>", "<|turn_end|>")]
    words = [AddedToken(WORD, normalized=False), AddedToken(SINGLE, normalized=False, single_word=True)]
    own = checkpoints.tokenizer(checkpoints.LLAMA3, [*words, *ends])
    folder = checkpoints.llama(tmp_path / "model", own)
    last = own.token_to_id("<|turn_end|>")
    checkpoints.edit(folder / "generation_config.json", eos_token_id=[0, last - 1, last])
    made = convert(folder, tmp_path / "out.gguf", session=Session(toolchain))
    checked = made.verification
    assert checked.stop_tokens == (0, last - 1, last) and not checked.stop_tokens_lost
    assert tokens(made, f"under {WORD} of") == own.encode(f"under {WORD} of").ids
    (warning,) = checked.warnings
    assert SINGLE in warning and "single_word" in warning and WORD not in warning.partition(":")[0]
    assert checked.tokenizer_compared is not None
    assert 0 < checked.tokenizer_strings < checked.tokenizer_compared


@pytest.mark.tool
def test_what_llama_cpp_lacks_is_told(toolchain: Toolchain, tmp_path: Path) -> None:
    from tokenizers import AddedToken

    own = checkpoints.tokenizer(
        checkpoints.QWEN2, [AddedToken("<mask>", special=True, lstrip=True)], nfc=True
    )
    folder = checkpoints.llama(tmp_path / "model", own)
    form, token = convert(folder, tmp_path / "out.gguf", session=Session(toolchain)).verification.warnings
    assert "NFC" in form and "<mask>" in token and "lstrip" in token


@pytest.mark.tool
def test_tokens_without_rows_are_left_out_by_name(toolchain: Toolchain, tmp_path: Path, tokens: Any) -> None:
    from tokenizers import AddedToken

    own = checkpoints.tokenizer("gpt2")
    folder = checkpoints.llama(tmp_path / "model", own)
    own.add_special_tokens([AddedToken("<|plugin|>", special=True), AddedToken("<|im_start|>", special=True)])
    own.save(str(folder / "tokenizer.json"))
    made = convert(folder, tmp_path / "out.gguf", session=Session(toolchain))
    (warning,) = made.verification.warnings
    count = own.get_vocab_size()
    assert f"ids up to {count - 1}" in warning and f"{count - 2} rows" in warning
    assert "<|plugin|>" in warning and "<|im_start|>" in warning
    assert len(tokens(made, "<|plugin|>")) > 1


@pytest.mark.tool
@pytest.mark.parametrize("named", [True, False])
def test_no_ordinary_token_ends_a_turn_unsaid(named: bool, toolchain: Toolchain, tmp_path: Path) -> None:
    """A vocabulary of GPT-2's kind whose end is no added token: llama.cpp would take token 11, a comma."""
    folder = checkpoints.llama(tmp_path / "model", checkpoints.tokenizer())
    checkpoints.edit(folder / "tokenizer.json", added_tokens=[])
    for name in ("config.json", "generation_config.json"):
        checkpoints.edit(folder / name, eos_token_id=..., bos_token_id=...)
    if not named:
        checkpoints.edit(folder / "tokenizer_config.json", eos_token=...)
    made = convert(folder, tmp_path / "out.gguf", session=Session(toolchain))
    with LoadedGguf(toolchain, made.output, 1, weights=False) as loaded:
        ends = [token for token in range(loaded.token_count) if loaded.ends_generation(token)]
    told = [warning for warning in made.verification.warnings if "ordinary token" in warning]
    if named:
        assert ends == [0] and not told
    else:
        assert 11 in ends and len(told) == 1 and "(11)" in told[0]


def test_stop_ids_of_all_files(tmp_path: Path) -> None:
    write = checkpoints.write_json
    write(tmp_path / "generation_config.json", {"eos_token_id": [3, 4]})
    write(tmp_path / "config.json", {"eos_token_id": 2, "text_config": {"eos_token_id": [5, True, -1, "x"]}})
    write(tmp_path / "tokenizer_config.json", {"eos_token": {"content": "<end>"}})
    write(tmp_path / "special_tokens_map.json", {"eos_token": "<other>"})
    found = stop_tokens.find(tmp_path, {"<end>": 7}.get)
    assert found == {
        2: "config.json", 3: "generation_config.json", 4: "generation_config.json", 5: "config.json",
        7: "tokenizer_config.json",
    }  # fmt: skip


def test_rows_of_an_embedding(example: Path) -> None:
    given = checkpoint.read(example)
    assert vocabulary_rows.count(given) == given.vocabulary_size


@pytest.mark.parametrize(
    ("post_processor", "begins"),
    [
        (None, False),
        ({"type": "ByteLevel"}, False),
        ({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {}}]}, True),
        ({"type": "Sequence", "processors": [{"type": "ByteLevel"}, {"type": "RobertaProcessing"}]}, True),
    ],
)
def test_whether_a_text_begins_with_a_token(tmp_path: Path, post_processor: Any, begins: bool) -> None:
    checkpoints.write_json(tmp_path / "tokenizer.json", {"model": {}, "post_processor": post_processor})
    assert tokenizer_file.begins_with_a_token(tmp_path) is begins

"""Encoders: their tokenizers, their vectors, and what of sentence-transformers a GGUF does not carry."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from checkpoints import model, save_unigram, save_wordpiece, write_json

from ggq import corpora
from ggq.conversion import compare_vectors, convert, sentence_transformers, unigram, wordpiece
from ggq.errors import CannotServe, CheckpointProblem, ConversionProblem, GgufProblem
from ggq.gguf import file as gguf_file
from ggq.llamacpp.converter_unigram import Vocabulary
from ggq.llamacpp.memory import Load
from ggq.llamacpp.server import Serving
from ggq.llamacpp.toolchain import Toolchain
from ggq.measurement import model_file, quality, speed_tests
from ggq.progress import Event
from ggq.quantization.imatrix import imatrix
from ggq.session import Session

SMALL = {
    "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": ...,
    "max_position_embeddings": 130, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip


def small(**more: Any) -> dict[str, Any]:
    return {key: value for key, value in {**SMALL, **more}.items() if value is not ...}


def modules(folder: Path, pooling: dict[str, Any], *more: tuple[str, str]) -> None:
    steps = [("Transformer", ""), ("Pooling", "1_Pooling"), *more]
    content = [
        {"idx": place, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for place, (kind, path) in enumerate(steps)
    ]
    write_json(folder / "modules.json", content)
    (folder / "1_Pooling").mkdir(exist_ok=True)
    write_json(folder / "1_Pooling" / "config.json", pooling)


def bert(folder: Path) -> Path:
    """WordPiece from vocab.txt alone, whose settings name no special tokens; CLS pooling of 5.4's kind."""
    folder.mkdir()
    model(folder, "BertModel", config="BertConfig", vocab_size=save_wordpiece(folder), **small())
    modules(folder, {"pooling_mode": "cls"}, ("Normalize", "2_Normalize"), ("Dense", "3_Dense"))
    return folder


def xlm_roberta(folder: Path) -> Path:
    """A Unigram tokenizer.json that lists no added token; mean pooling in the older form."""
    from tokenizers import normalizers

    folder.mkdir()
    count = save_unigram(folder, normalizers.NFKC(), added=False)
    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "type_vocab_size": 1}
    model(folder, "XLMRobertaModel", config="XLMRobertaConfig", vocab_size=count, **small(**ids))
    modules(folder, {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False})
    return folder


# --- converted --------------------------------------------------------------------------------------------


@pytest.mark.tool
@pytest.mark.timeout(300)
def test_wordpiece_from_its_vocabulary(toolchain: Toolchain, tmp_path: Path) -> None:
    events: list[Event] = []
    made = convert(
        bert(tmp_path / "bert"), tmp_path / "bert.gguf", session=Session(toolchain, listener=events.append)
    )
    found = made.verification
    assert found.vectors_cosine is not None and found.vectors_cosine > 0.9999
    assert found.pooled_cosine is not None and found.pooled_cosine > 0.9999
    assert (found.pooling, found.logits_cosine, found.why_not) == ("cls", None, "")
    assert found.tokenizer_strings == found.tokenizer_compared and found.tokenizer_strings > 100
    told = " ".join(found.warnings)
    assert "length 1" in told and "3_Dense" in told
    assert "differ" not in told  # the ids of [CLS] and [SEP], which no settings name
    gguf = gguf_file.read(made.output)
    assert gguf.is_encoder
    _verbs_that_need_next_tokens_refuse(made.output, toolchain)
    assert {it.test for it in speed_tests.points(gguf, None, None, (0,))} == {"prompt"}
    with pytest.raises(CannotServe, match="generates no text"):
        speed_tests.points(gguf, None, (16,), (0,))
    with pytest.raises(GgufProblem, match="does not continue texts"):
        gguf.require_text_generation()


def _verbs_that_need_next_tokens_refuse(file: Path, toolchain: Toolchain) -> None:
    text = file.parent / "text.txt"
    text.write_text("hello world. " * 400, encoding="utf-8")
    with pytest.raises(GgufProblem, match="cannot have an imatrix") as no_matrix:
        imatrix(file, text=text, session=Session(toolchain=toolchain))
    assert "It is an encoder" in no_matrix.value.why
    model = model_file.of(file)
    with pytest.raises(GgufProblem, match="cannot have a perplexity"):
        quality.measure(model, [model], corpora.read(text), session=Session(toolchain), work=file.parent)


@pytest.mark.tool
def test_an_encoder_is_served_for_its_vectors(tmp_path: Path) -> None:
    serving = Serving(Load(128), "mmap", 1, 1)
    assert "--embeddings" not in serving.server_command(tmp_path / "bert.gguf")
    assert "embedding" not in (serving.binding_options() or {})
    serving = replace(serving, embeddings=True)
    assert "--embeddings" in serving.server_command(tmp_path / "bert.gguf")
    assert (serving.binding_options() or {})["embedding"] is True


@pytest.mark.tool
@pytest.mark.timeout(300)
def test_unigram_without_a_sentencepiece_file(toolchain: Toolchain, tmp_path: Path) -> None:
    made = convert(xlm_roberta(tmp_path / "xlmr"), tmp_path / "xlmr.gguf", session=Session(toolchain))
    found = made.verification
    assert found.vectors_cosine is not None and found.vectors_cosine > 0.9999
    assert found.pooled_cosine is not None and found.pooled_cosine > 0.9999
    assert found.pooling == "mean"
    assert not any("not explained" in warning for warning in found.warnings)
    gguf = gguf_file.read(made.output)
    assert gguf.integer("tokenizer.ggml.unknown_token_id") == 3  # llama.cpp takes 2 where nothing is said


# --- the verdict ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vectors", "words"),
    [
        ({"cosine": 0.9, "positions": 32}, "tokens' vectors"),
        ({"cosine": 1.0, "positions": 32, "pooled_cosine": 0.9}, "pooled vectors"),
        ({"cosine": 1.0, "pooling": "cls", "written_pooling": "none"}, "say cls; the GGUF says none"),
        ({"not_finite": "the GGUF's"}, "NaN or infinity"),
    ],
)
def test_other_vectors_are_refused(vectors: dict[str, Any], words: str) -> None:
    with pytest.raises(ConversionProblem) as problem:
        compare_vectors.require_same(vectors, "f16", 0.999)
    assert words in problem.value.why


def test_like_vectors_pass() -> None:
    compare_vectors.require_same({"cosine": 0.9999, "pooled_cosine": 0.9999, "positions": 8}, "f16", 0.999)


# --- sentence-transformers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "mode"),
    [
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode": ["lasttoken"]}, "lasttoken"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_lasttoken": True}, "lasttoken"),
    ],
)
def test_pooling_in_each_form(tmp_path: Path, said: dict[str, Any], mode: str) -> None:
    modules(tmp_path, said)
    settings = sentence_transformers.read(tmp_path)
    assert settings is not None and settings.pooling == mode
    sentence_transformers.settle(tmp_path)  # in a form that the converter reads
    written = json.loads((tmp_path / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
    assert written.get("pooling_mode") == mode or said == written
    assert sentence_transformers.read(tmp_path) == settings


@pytest.mark.parametrize(
    "said",
    [
        {"pooling_mode": "max"},
        {"pooling_mode": ["cls", "mean"]},
        {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
        {"pooling_mode_weightedmean_tokens": True},
        {},
    ],
)
def test_pooling_that_llama_cpp_lacks_is_refused(tmp_path: Path, said: dict[str, Any]) -> None:
    modules(tmp_path, said)
    with pytest.raises(CheckpointProblem, match="cannot pool"):
        sentence_transformers.read(tmp_path)


@pytest.mark.parametrize("path", ["../outside", "/etc", "a/b", "..\\x", "C:x"])
def test_a_module_stays_in_the_checkpoint(tmp_path: Path, path: str) -> None:
    modules(tmp_path, {"pooling_mode": "cls"}, ("Dense", path))
    with pytest.raises(CheckpointProblem, match=r"modules\.json"):
        sentence_transformers.read(tmp_path)


@pytest.mark.parametrize("content", ["[", "{}", "[1]", '[{"type": "Pooling"}]'])
def test_modules_that_cannot_be_read(tmp_path: Path, content: str) -> None:
    (tmp_path / "modules.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointProblem, match=r"modules\.json"):
        sentence_transformers.read(tmp_path)


def test_what_a_gguf_does_not_carry_is_told(tmp_path: Path) -> None:
    modules(tmp_path, {"pooling_mode": "mean", "include_prompt": False}, ("LayerNorm", "2_LayerNorm"))
    write_json(tmp_path / "config_sentence_transformers.json", {"prompts": {"query": "query: ", "none": ""}})
    write_json(tmp_path / "sentence_bert_config.json", {"max_seq_length": 64, "do_lower_case": True})
    settings = sentence_transformers.read(tmp_path, 128)
    assert settings is not None
    told = " ".join(settings.lost)
    for words in ("prompt's tokens", "LayerNorm", "(query)", "64 tokens", "small letters"):
        assert words in told
    without = sentence_transformers.read(tmp_path, 64)
    assert without is not None and "64 tokens" not in " ".join(without.lost)


# --- tokenizers -------------------------------------------------------------------------------------------


def test_a_vocabulary_of_another_kind_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[UNK]\na\n", encoding="utf-8")
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "BertJapaneseTokenizer"})
    assert not wordpiece.complete(tmp_path)
    assert not (tmp_path / "tokenizer.json").exists()


@pytest.mark.parametrize(("lowered", "expected"), [(True, "[UNK]"), (False, "A")])
def test_case_is_as_the_settings_say(tmp_path: Path, lowered: bool, expected: str) -> None:
    from tokenizers import Tokenizer

    (tmp_path / "vocab.txt").write_text("[UNK]\r\nA\r\n", encoding="utf-8")
    write_json(tmp_path / "tokenizer_config.json", {"do_lower_case": lowered})
    assert wordpiece.complete(tmp_path)
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("A").tokens == [expected]
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert settings["unk_token"] == "[UNK]" and "cls_token" not in settings


def _read(folder: Path, rows: int = 0) -> Vocabulary:
    found = unigram.read(folder, rows)
    assert found is not None
    return found


def test_unigram_kinds_and_rows(tmp_path: Path) -> None:
    count = save_unigram(tmp_path)
    found = _read(tmp_path, count + 2)
    assert found.texts[-2:] == (f"[PAD{count}]", f"[PAD{count + 1}]")
    assert found.kinds[:5] == (
        unigram.CONTROL,
        unigram.CONTROL,
        unigram.CONTROL,
        unigram.UNKNOWN,
        unigram.NORMAL,
    )
    assert found.kinds[-1] == unigram.UNUSED
    assert found.special["unk"] == 3 and found.special["bos"] == 0
    assert (found.add_prefix, found.merge_spaces, found.charsmap) == (True, False, b"")


@pytest.mark.torch
def test_a_normalizer_becomes_a_table(tmp_path: Path) -> None:
    from sentencepiece import SentencePieceNormalizer, sentencepiece_model_pb2
    from tokenizers import normalizers

    steps = [normalizers.Replace("``", '"'), normalizers.NFKD(), normalizers.StripAccents()]
    save_unigram(tmp_path, normalizers.Sequence([*steps, normalizers.Lowercase()]))
    proto = sentencepiece_model_pb2.ModelProto()
    proto.normalizer_spec.precompiled_charsmap = _read(tmp_path).charsmap
    proto.normalizer_spec.add_dummy_prefix = proto.normalizer_spec.escape_whitespaces = False
    table = SentencePieceNormalizer(normalizer_spec=proto.normalizer_spec)
    assert table.Normalize("``ÉCOLE ﬁ Ａ") == '"ecole fi a'


@pytest.mark.parametrize("step", ["regex", "digits"])
def test_what_llama_cpp_cannot_do_is_refused(tmp_path: Path, step: str) -> None:
    from tokenizers import Regex, normalizers

    normalizer = normalizers.Replace(Regex("[0-9]"), "0") if step == "regex" else None
    save_unigram(tmp_path, normalizer)
    if step == "digits":
        file = tmp_path / "tokenizer.json"
        content = json.loads(file.read_text(encoding="utf-8"))
        content["pre_tokenizer"] = {"type": "Digits", "individual_digits": True}
        write_json(file, content)
    with pytest.raises(CheckpointProblem, match="cannot do this Unigram"):
        unigram.read(tmp_path, 0)


# --- accounting and kinds ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "causal", "encoder"),
    [("bert", False, True), ("llama", None, False), ("llada", False, False), ("t5encoder", None, True)],
)
def test_which_files_are_encoders(
    base_gguf: Path, architecture: str, causal: bool | None, encoder: bool
) -> None:
    given = gguf_file.read(base_gguf)
    metadata = {**given.metadata, "general.architecture": architecture}
    if causal is not None:
        metadata[f"{architecture}.attention.causal"] = causal
    changed = replace(given, metadata=metadata)
    assert changed.is_encoder is encoder
    assert changed.generates_text is (causal is None and not encoder)

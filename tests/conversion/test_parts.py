"""The parts of a conversion that need no tool: gaps, assumptions, accounting, verdicts, words, the view."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ggq.checkpoint import checkpoint
from ggq.conversion import (
    checkpoint_view,
    compare_logits,
    config_gaps,
    converter_errors,
    tokenizer_model,
    tokenizer_texts,
    unsupported,
)
from ggq.conversion.parameter_count import Account, account
from ggq.conversion.verification import Findings, verdict
from ggq.errors import CheckpointProblem, ConversionProblem, DiskFull

# ---- gaps ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("known", "found"),
    [
        ({"model_type": "gpt2", "n_positions": 1024}, {"n_ctx": 1024}),
        (
            {"model_type": "gpt_neox", "rope_parameters": {"partial_rotary_factor": 0.5}},
            {"rotary_pct": 0.5},
        ),
        ({"model_type": "gpt_neox"}, {"rotary_pct": 0.25}),
        ({"model_type": "gemma3_text", "layer_types": ["sliding_attention", "full_attention"]}, {}),
        (
            {"model_type": "gemma3_text", "layer_types": ["full_attention"] * 2},
            {"sliding_window_pattern": 1},
        ),
        ({"model_type": "llama", "n_positions": 1024}, {}),
    ],
)
def test_keys_that_are_missing(known: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    assert config_gaps.missing_keys({"model_type": known["model_type"]}, known) == found


def test_a_key_that_is_there_stays() -> None:
    config = {"model_type": "gpt2", "n_ctx": 7}
    assert config_gaps.missing_keys(config, {"n_positions": 1024}) == {}


def test_an_option_for_weights_that_are_not_there() -> None:
    assert config_gaps.options("Qwen3NextForCausalLM", ["model.norm.weight"]) == ["--no-nextn"]
    assert config_gaps.options("Qwen3NextForCausalLM", ["mtp.fc.weight"]) == []
    assert config_gaps.options("LlamaForCausalLM", ["model.norm.weight"]) == []


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}
QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(pattern: str, **more: Any) -> dict[str, Any]:
    step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", **more}
    return {"type": "Sequence", "pretokenizers": [step, {**BYTES, "use_regex": False}]}


@pytest.mark.parametrize(
    ("rules", "name"),
    [
        (BYTES, "gpt-2"),
        (split(QWEN), "qwen2"),
        (split(QWEN, behavior="Removed"), None),
        (split("."), None),
        ({"type": "Sequence", "pretokenizers": [DIGITS, BYTES]}, "smollm"),
        ({"type": "Sequence", "pretokenizers": [{**DIGITS, "individual_digits": False}, BYTES]}, None),
        ({**BYTES, "add_prefix_space": True}, None),
        ({**BYTES, "use_regex": False}, None),
        ({"type": "Metaspace"}, None),
        (None, None),
    ],
)
def test_a_pre_tokenizer_by_its_rules(rules: Any, name: str | None) -> None:
    assert config_gaps.pre_tokenizer({"pre_tokenizer": rules}) == name


# ---- assumptions -----------------------------------------------------------------------------------------

GEMMA = {"head_dim": 256, "num_hidden_layers": 26, "hidden_size": 2304, "num_attention_heads": 8}
GEMMA_27B = {"head_dim": 128, "num_hidden_layers": 46, "hidden_size": 4608, "num_attention_heads": 32}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "gemma2", **GEMMA, "query_pre_attn_scalar": 256}, ""),
        ({"model_type": "gemma2", **GEMMA, "query_pre_attn_scalar": 224}, "1/√256"),
        ({"model_type": "gemma2", **GEMMA_27B, "query_pre_attn_scalar": 144}, ""),
        ({"model_type": "gemma2", **GEMMA_27B, "query_pre_attn_scalar": 128}, "1/√144"),
        (
            {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", **GEMMA,
             "query_pre_attn_scalar": 100}},
            "1/√256",
        ),
        ({"model_type": "gemma3_text", "layer_types": ["full_attention", "sliding_attention"]}, "in turn"),
        ({"model_type": "gemma3_text", "layer_types": ["full_attention"] * 3}, ""),
        ({"model_type": "qwen3_moe", "norm_topk_prob": True}, ""),
        ({"model_type": "qwen3_moe", "norm_topk_prob": False}, "norm_topk_prob"),
        ({"model_type": "qwen2_moe", "norm_topk_prob": True}, "norm_topk_prob"),
        ({"model_type": "granitemoehybrid", "layer_types": ["mamba"], "vocab_size": 465}, "472 tokens"),
        ({"model_type": "granitemoehybrid", "layer_types": ["mamba"], "vocab_size": 464}, ""),
        ({"model_type": "granitemoehybrid", "layer_types": ["full_attention"], "vocab_size": 465}, ""),
        ({"model_type": "nemotron_h", "layers_block_type": ["moe", "mlp"], "vocab_size": 8}, "with one kind"),
        ({"model_type": "llama"}, ""),
    ],
)  # fmt: skip
def test_what_llama_cpp_takes_for_granted(config: Mapping[str, Any], words: str) -> None:
    broken = unsupported.broken(config)
    assert words in broken if words and broken else not words and broken is None


# ---- accounting ------------------------------------------------------------------------------------------

EMBEDDING, HEAD, REST = ("model.embed_tokens.weight", 80), ("lm_head.weight", 80), ("model.norm.weight", 8)


def gguf(**shapes: tuple[int, ...]) -> Any:
    tensors = []
    for name, shape in shapes.items():
        elements = shape[0] * (shape[1] if len(shape) > 1 else 1)
        tensors.append(SimpleNamespace(name=f"{name}.weight", shape=shape, elements=elements))
    return SimpleNamespace(tensors=tuple(tensors))


@pytest.mark.parametrize(
    ("given", "made", "unexplained", "note"),
    [
        ([EMBEDDING, REST], gguf(token_embd=(8, 10), norm=(8,)), 0, ""),
        ([EMBEDDING, REST], gguf(token_embd=(8, 10)), -8, ""),
        ([EMBEDDING, HEAD, REST], gguf(token_embd=(8, 10), norm=(8,)), 0, "once more"),
        ([EMBEDDING, REST], gguf(token_embd=(8, 10), norm=(8,), output=(8, 10)), 0, "second time"),
        ([EMBEDDING, REST], gguf(token_embd=(8, 12), norm=(8,)), 0, "2 rows were added"),
        ([EMBEDDING, REST], gguf(token_embd=(8, 9), norm=(8,)), 0, "1 rows without a token"),
        ([EMBEDDING, REST], gguf(token_embd=(8, 10), norm=(8,), rope_freqs=(4,)), 0, "computed"),
        ([EMBEDDING, REST, ("h.0.attn.bias", 99)], gguf(token_embd=(8, 10), norm=(8,)), 0, "buffers"),
        ([EMBEDDING, REST, ("visual.x.weight", 9)], gguf(token_embd=(8, 10), norm=(8,)), 0, "other parts"),
    ],
)
def test_every_parameter_is_accounted_for(
    given: list[tuple[str, int]], made: Any, unexplained: int, note: str
) -> None:
    found = account(dict(given), made)
    assert found.unexplained == unexplained
    assert note in " ".join(found.notes)


# ---- the verdict -----------------------------------------------------------------------------------------

GOOD = {"positions": 32, "cosine": 0.9999, "lowest_cosine": 0.9998, "top1_agreement": 1.0}
SAME = Account(100, 100, (), 0)


def findings(**more: Any) -> Findings:
    tokens = {"strings": 8, "mismatches": []}
    usual = {"account": SAME, "not_finite": (), "tokenizer": tokens, "logits": GOOD}
    return Findings(tensor_count=3, gguf_parameters=100, **{**usual, **more})


def test_a_good_conversion_reports_its_number() -> None:
    assert verdict("sampled", "bf16", findings()).logits_cosine == 0.9999


def test_values_that_nobody_looked_at_are_told() -> None:
    assert not verdict("sampled", "bf16", findings()).warnings
    found = verdict("sampled", "bf16", findings(unread=("blk.0.x",)))
    [told] = found.warnings
    assert "were not looked at" in told and "blk.0.x" in told and found.unread_tensors == 1


@pytest.mark.parametrize(
    ("outtype", "found", "words"),
    [
        ("bf16", findings(not_finite=("blk.0.x",)), "not numbers"),
        ("f16", findings(logits={"not_finite": "the GGUF's"}), "not numbers"),
        ("bf16", findings(logits={**GOOD, "cosine": 0.9989}), "does not compute"),
        ("q8_0", findings(logits={**GOOD, "cosine": 0.98}), "does not compute"),
        (
            "bf16",
            findings(
                tokenizer={
                    "strings": 8,
                    "reference": "tokenizer.json",
                    "mismatches": [{"text": "a", "expected": [1], "gguf": [2]}],
                }
            ),
            "tokenizer is not",
        ),
        (
            "bf16",
            findings(account=Account(100, 90, (), -10), logits={"why_not": "too large"}),
            "does not hold",
        ),
    ],
)
def test_a_bad_conversion_is_refused(outtype: str, found: Findings, words: str) -> None:
    with pytest.raises(ConversionProblem, match=words):
        verdict("sampled", outtype, found)


def test_logits_speak_for_parameters_that_cannot_be_explained() -> None:
    found = verdict("sampled", "bf16", findings(account=Account(100, 90, (), -10)))
    assert "logits agree all the same" in found.warnings[0]


def test_logits_that_were_not_compared_say_why() -> None:
    found = verdict("sampled", "bf16", findings(logits={"why_not": "no memory"}))
    assert (found.logits_cosine, found.why_not) == (None, "no memory")


def test_cosines() -> None:
    import numpy as np

    right = np.array([[1.0, 2.0, 3.0], [3.0, 1.0, 0.0]])
    same = compare_logits.compare(right, np.hstack([2 * right, np.ones((2, 1))]))
    assert same["cosine"] == pytest.approx(1.0) and same["top1_agreement"] == 1.0
    other = compare_logits.compare(right, np.array([[1.0, 2.0, 3.0], [0.0, 1.0, 3.0]]))
    assert other["lowest_cosine"] == pytest.approx(0.1) and other["top1_agreement"] == 0.5
    assert compare_logits.compare(right, np.full((2, 3), np.nan)) == {"not_finite": "the GGUF's"}


@pytest.mark.torch
def test_an_activation_that_transformers_does_not_have() -> None:
    known = {"model_type": "llama", "hidden_act": "silu"}
    assert unsupported.unknown_activation(known) is None
    assert unsupported.unknown_activation({"model_type": "not known", "hidden_act": "own"}) is None
    assert "'sillu'" in str(unsupported.unknown_activation(known | {"hidden_act": "sillu"}))


# ---- words -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "text", "problem", "words"),
    [
        ("KeyError", "'n_ctx'", CheckpointProblem, "'n_ctx'"),
        ("FileNotFoundError", "File not found: /x/tokenizer.model", CheckpointProblem, "tokenizer.model"),
        ("AssertionError", "assert max(tokenizer.vocab.values()) < vocab_size", CheckpointProblem, "no row"),
        ("NotImplementedError", "Quant method is not yet supported: 'x'", CheckpointProblem, "quantized"),
        ("NotImplementedError", "The rope scaling type x is not yet", CheckpointProblem, "scaling type x"),
        ("ValueError", "Can not map tensor 'a.b'", CheckpointProblem, "a.b"),
        ("ValueError", "tensor 'a' wrote 3 bytes, expected 7", DiskFull, "disk became full"),
        ("OSError", "[Errno 28] No space left on device", DiskFull, "disk became full"),
        ("MemoryError", "", ConversionProblem, "Memory ran out"),
        ("ModuleNotFoundError", "No module named 'mistral_common'", ConversionProblem, "mistral-common"),
        (
            "UnpicklingError",
            "Weights only load failed. Unsupported global: os.system",
            CheckpointProblem,
            "code",
        ),
        ("ZeroDivisionError", "division by zero", CheckpointProblem, "division by zero"),
        ("TypeError", "'hidden_size' is no int", CheckpointProblem, "about hidden_size in config.json"),
        ("error", "required argument is not an integer", CheckpointProblem, "cannot use what config.json"),
        ("RecursionError", "maximum recursion depth exceeded", CheckpointProblem, "nested too deeply"),
        ("Odd", "x" * 100_000, ConversionProblem, "Odd"),
    ],
)
def test_failures_become_words(
    example: Path, kind: str, text: str, problem: type[Exception], words: str
) -> None:
    report = {"phase": "convert", "kind": kind, "text": text, "where": "conversion/x.py:1, in f"}
    explained = converter_errors.explain(checkpoint.read(example), report)
    assert type(explained) is problem
    assert words in str(explained)
    assert explained.next_step


@pytest.mark.parametrize(
    "said",
    [
        "Weights only load failed. In PyTorch 2.6, we changed the default of `weights_only`. "
        "Re-running `torch.load` with `weights_only` set to `False` will likely succeed, but can run "
        "code.\nPlease file an issue: WeightsUnpickler error: Unsupported global: "
        "GLOBAL posix.system was not an allowed global by default.\nCheck the documentation",
        "Weights only load failed. Do it only if you trust the source (weights_only=False).",
    ],
)
def test_torchs_advice_to_load_a_pickle_all_the_same_is_not_passed_on(example: Path, said: str) -> None:
    report = {"phase": "convert", "kind": "UnpicklingError", "text": said, "where": ""}
    words = str(converter_errors.explain(checkpoint.read(example), report))
    assert "weights_only" not in words and "succeed" not in words and "hold more than weights" in words
    assert "weights_only" not in compare_logits.first_line(ValueError(said))


def test_a_death_in_the_child_is_a_finding() -> None:
    assert "memory runs out" in converter_errors.died("convert", -9, []).why
    crash = converter_errors.died("llama.cpp", -6, ["ggml.c:1: GGML_ASSERT(x) failed"])
    assert "SIGABRT" in crash.what
    assert crash.why == "llama.cpp stopped at a check of its own: x (ggml.c:1)."
    assert "memory that is not its own" in converter_errors.died("llama.cpp", -11, ["a log"]).why
    assert "a line" in converter_errors.died("convert", -11, ["a line"]).why


# ---- the view --------------------------------------------------------------------------------------------


def test_the_view_is_links_and_no_code(example: Path, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(example, tmp_path / "model"))
    (folder / "modeling.py").write_text("raise SystemExit")
    config = json.loads((folder / "config.json").read_text())
    nested = {"vision_config": {"auto_map": {"AutoModel": "modeling.Model"}}}
    (folder / "config.json").write_text(json.dumps({**config, **nested, "auto_map": {}}))
    work = tmp_path / "work"
    work.mkdir()
    made = checkpoint_view.make(
        checkpoint.read(folder), work, checkpoint_view.SourceInfo("org/Name-1B", "c", "mit")
    )
    assert made.name == checkpoint_view.NAME
    assert not (made / "modeling.py").exists()
    assert (made / "model.safetensors").is_symlink() and not (made / "config.json").is_symlink()
    assert "auto_map" not in (made / "config.json").read_text()
    checkpoint_view.change(
        made, lambda config: checkpoint_view.merge(config, {"n_ctx": 3, "vision_config": {"depth": 2}})
    )
    completed = json.loads((made / "config.json").read_text())
    assert completed == {**config, "vision_config": {"depth": 2}, "n_ctx": 3}
    assert "n_ctx" not in (folder / "config.json").read_text()


def test_a_license_that_only_the_hub_knows(example: Path, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(example, tmp_path / "model", ignore=shutil.ignore_patterns("*.md")))
    made = checkpoint_view.make(
        checkpoint.read(folder), tmp_path, checkpoint_view.SourceInfo("org/name", "c", "mit")
    )
    assert 'license: "mit"' in (made / "README.md").read_text()


@pytest.mark.torch
def test_a_tokenizer_model_made_of_a_tokenizer_json(example: Path, tmp_path: Path) -> None:
    import shutil

    from sentencepiece import SentencePieceProcessor
    from transformers import LlamaTokenizer

    shutil.copy(example / "tokenizer.model", tmp_path)
    LlamaTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
    real = SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert not tokenizer_model.complete(tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    assert tokenizer_model.complete(tmp_path)
    made = SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert made.get_piece_size() == real.get_piece_size()
    for text in tokenizer_texts.SENTENCES[:3] + tokenizer_texts.SENTENCES[15:17]:
        assert made.encode(text) == real.encode(text), text


@pytest.mark.parametrize("unit", ["tokenizer", "a.", "'", "`a", "Missing tensors: ", "[", "quant", "x-"])
@pytest.mark.parametrize(
    "kind", ["ValueError", "FileNotFoundError", "NotImplementedError", "Odd", "TypeError"]
)
def test_words_are_found_in_any_text_at_once(example: Path, kind: str, unit: str) -> None:
    import time

    given = checkpoint.read(example)

    def cost(count: int) -> float:
        begun = time.process_time()
        converter_errors.explain(
            given, {"phase": "convert", "kind": kind, "text": unit * count + "!", "where": ""}
        )
        return time.process_time() - begun

    assert cost(100_000) < 20 * cost(10_000) + 0.5  # the square would be 100 times as much


@pytest.mark.parametrize(
    ("config", "key", "value"),
    [
        (
            {"model_type": "granitemoehybrid", "layer_types": ["linear_attention", "full_attention"]},
            "layer_types",
            ["mamba", "attention"],
        ),
        (
            {"model_type": "granitemoehybrid", "layer_types": ["mamba", "attention"]},
            "layer_types",
            ["mamba", "attention"],
        ),
        (
            {"model_type": "nemotron_h", "layers_block_type": ["linear_attention", "mlp", "full_attention"]},
            "hybrid_override_pattern",
            "M-*",
        ),
        (
            {"model_type": "nemotron_h", "layers_block_type": ["mamba", "new"]},
            "hybrid_override_pattern",
            None,
        ),
        ({"model_type": "llama", "layer_types": ["full_attention"]}, "layer_types", ["full_attention"]),
    ],
)
def test_words_for_layers_are_those_of_the_converter(
    config: dict[str, object], key: str, value: object
) -> None:
    config_gaps.translate(config)
    assert config.get(key) == value


def test_experts_that_no_layer_has_are_not_announced() -> None:
    plain = {"model_type": "nemotron_h", "num_experts_per_tok": 2, "layers_block_type": ["mamba", "mlp"]}
    config_gaps.translate(plain)
    assert "num_experts_per_tok" not in plain
    mixture = {"model_type": "nemotron_h", "num_experts_per_tok": 2, "layers_block_type": ["mamba", "moe"]}
    config_gaps.translate(mixture)
    assert mixture["num_experts_per_tok"] == 2
    dense = {"model_type": "granitemoehybrid", "num_experts_per_tok": 2, "num_local_experts": 0}
    config_gaps.translate(dense)
    assert "num_experts_per_tok" not in dense
    few = {"model_type": "granitemoehybrid", "num_experts_per_tok": 2, "num_local_experts": 4}
    config_gaps.translate(few)
    assert few["num_experts_per_tok"] == 2

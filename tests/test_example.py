"""examples/tiny-llama: the checkpoint that everything can be tried with, offline."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from sentencepiece import SentencePieceProcessor

TINY = Path(__file__).parents[1] / "examples" / "tiny-llama"
BLOCK = 256  # weights in a K-quant's block: a row must be a multiple, or llama-quantize falls back
WINDOW = 256


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    fields: dict[str, Any] = json.loads((TINY / "config.json").read_text("utf-8"))
    return fields


@pytest.fixture(scope="module")
def tokenizer() -> SentencePieceProcessor:
    return SentencePieceProcessor(model_file=str(TINY / "tokenizer.model"))


def test_the_folder_stays_small() -> None:
    assert sum(path.stat().st_size for path in TINY.rglob("*")) <= 6_000_000


def test_weights_are_what_the_config_says(config: dict[str, Any]) -> None:
    hidden, ffn, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    block = {
        "input_layernorm": [hidden],
        "post_attention_layernorm": [hidden],
        "self_attn.q_proj": [hidden, hidden],
        "self_attn.k_proj": [kv, hidden],
        "self_attn.v_proj": [kv, hidden],
        "self_attn.o_proj": [hidden, hidden],
        "mlp.gate_proj": [ffn, hidden],
        "mlp.up_proj": [ffn, hidden],
        "mlp.down_proj": [hidden, ffn],
    }
    layers = range(config["num_hidden_layers"])
    expected = {f"model.layers.{i}.{name}.weight": shape for i in layers for name, shape in block.items()}
    expected["model.norm.weight"] = [hidden]
    expected["model.embed_tokens.weight"] = expected["lm_head.weight"] = [vocab, hidden]
    with safe_open(TINY / "model.safetensors", framework="numpy") as weights:
        slices = {name: weights.get_slice(name) for name in weights.keys()}  # noqa: SIM118 (not a mapping)
        assert {name: part.get_shape() for name, part in slices.items()} == expected
        assert {part.get_dtype() for part in slices.values()} == {"BF16"}
    assert all(shape[-1] % BLOCK == 0 for shape in expected.values())


def test_every_text_survives_the_tokenizer(config: dict[str, Any], tokenizer: SentencePieceProcessor) -> None:
    assert tokenizer.vocab_size() == config["vocab_size"]
    assert (tokenizer.bos_id(), tokenizer.eos_id()) == (config["bos_token_id"], config["eos_token_id"])
    for text in (
        "Return a list of names.",
        "def f(x):\n\n    return  x**2\t# done",
        "안녕하세요, 세계",
        "🦙 ✅",
    ):
        ids = tokenizer.encode(text)
        assert tokenizer.unk_id() not in ids
        assert tokenizer.decode(ids) == text


def test_heldout_text_fills_twenty_chunks(tokenizer: SentencePieceProcessor) -> None:
    assert len(tokenizer.encode((TINY / "heldout.txt").read_text("utf-8"))) >= 20 * WINDOW


@pytest.mark.torch
def test_it_has_learned(config: dict[str, Any], tokenizer: SentencePieceProcessor) -> None:
    """Perplexity as llama-perplexity defines it: of the second half of each chunk, given the first."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    ids = tokenizer.encode((TINY / "heldout.txt").read_text("utf-8"))[: 20 * WINDOW]
    chunks = torch.tensor(ids).view(20, WINDOW)
    chunks[:, 0] = tokenizer.bos_id()
    with torch.no_grad():
        logits = model(chunks[:, :-1]).logits
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), chunks[:, 1:], reduction="none")
    perplexity = math.exp(losses[:, WINDOW // 2 :].mean().item())
    assert perplexity < tokenizer.vocab_size() / 10
    assert model.config.max_position_embeddings >= WINDOW


@pytest.mark.torch
def test_transformers_tokenizes_as_sentencepiece(tokenizer: SentencePieceProcessor) -> None:
    from transformers import AutoTokenizer

    other = AutoTokenizer.from_pretrained(TINY)
    for text in (
        "Return a list of names.",
        "for i in range(10):\n    print(i)",
        "two  spaces",
        "안녕",
        "🦙",
    ):
        assert other(text).input_ids == [tokenizer.bos_id(), *tokenizer.encode(text)]

"""Checkpoints of three kinds that the embedded model is not, as small as they can be: made on the spot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

# Rows of 256 take every type, the others fall back; so few rows that even the slowest types take no time.
_LLAMA = {
    "vocab_size": 2048,
    "hidden_size": 256,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def mixtral(folder: Path, example: Path) -> None:
    """A mixture of four experts."""
    settings = {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}
    _make(folder, "MixtralForCausalLM", "MixtralConfig", settings)
    _copy_tokenizer(folder, example)


def gemma(folder: Path, example: Path) -> None:
    """A Gemma 2, whose embeddings are its output, too."""
    settings = {**_LLAMA, "query_pre_attn_scalar": 32, "sliding_window": 128}
    _make(folder, "Gemma2ForCausalLM", "Gemma2Config", settings)
    _copy_tokenizer(folder, example)


def gpt2(folder: Path, tokenizer: Path) -> None:
    """A GPT-2, with its merged attention, its biases and its table of positions."""
    import transformers

    words = transformers.GPT2Tokenizer(
        vocab=str(tokenizer / "vocab.json"), merges=str(tokenizer / "merges.txt")
    )
    settings = {"vocab_size": len(words), "n_embd": 64, "n_inner": 256, "n_layer": 2, "n_head": 2}
    _make(folder, "GPT2LMHeadModel", "GPT2Config", {**settings, "n_positions": 512})
    words.save_pretrained(folder)


def _make(folder: Path, model: str, config: str, settings: dict[str, Any]) -> None:
    import torch
    import transformers

    torch.manual_seed(1)
    made = getattr(transformers, model)(getattr(transformers, config)(**settings))
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)
    made.to(torch.bfloat16).save_pretrained(folder)


def _copy_tokenizer(folder: Path, example: Path) -> None:
    shutil.copy(example / "tokenizer.model", folder)
    settings = json.loads((example / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")

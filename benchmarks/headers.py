"""Checkpoints of headers alone, of any size: what a repository's safetensors say, and holes for the rest."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggq.system import files


@dataclass(frozen=True)
class Shape:
    """The measures of a Llama; with ``experts``, two of them at a time, of a Mixtral."""

    hidden: int = 256
    ffn: int = 512
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    vocabulary: int = 2048
    experts: int = 0


LLAMA_8B = Shape(4096, 14336, 32, 32, 8, 32768)


def write(folder: Path, shape: Shape, tokenizer: Path, shards: int = 1) -> Path:
    """A hollow checkpoint in BF16, with the tokenizer's files of the folder ``tokenizer``."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(_config(shape)))
    for file in tokenizer.glob("tokenizer*"):
        shutil.copyfile(file, folder / file.name)
    if not (folder / "tokenizer_config.json").exists():
        settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "bos_token": "<s>"}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tensors = list(_tensors(shape).items())
    share = -(-len(tensors) // shards)
    places: dict[str, str] = {}
    for index in range(shards):
        part = dict(tensors[index * share : (index + 1) * share])
        name = f"model-{index + 1:05d}-of-{shards:05d}.safetensors" if shards > 1 else "model.safetensors"
        write_safetensors(folder / name, part)
        places |= dict.fromkeys(part, name)
    if shards > 1:
        index_file = folder / "model.safetensors.index.json"
        index_file.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def write_safetensors(file: Path, tensors: Mapping[str, tuple[int, ...]]) -> None:
    header: dict[str, Any] = {}
    end = 0
    for name, sizes in tensors.items():
        begin, end = end, end + 2 * math.prod(sizes)
        header[name] = {"dtype": "BF16", "shape": list(sizes), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    files.write_hollow(file, len(text).to_bytes(8, "little") + text, 8 + len(text) + end)


def _config(shape: Shape) -> dict[str, Any]:
    experts = {"num_local_experts": shape.experts, "num_experts_per_tok": 2, "sliding_window": None}
    return {
        "architectures": ["MixtralForCausalLM" if shape.experts else "LlamaForCausalLM"],
        "model_type": "mixtral" if shape.experts else "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **(experts if shape.experts else {}),
    }


def _tensors(shape: Shape) -> dict[str, tuple[int, ...]]:
    hidden, ffn = shape.hidden, shape.ffn
    narrow = hidden // shape.heads * shape.kv_heads
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocabulary, hidden)}
    for layer in range(shape.layers):
        block = f"model.layers.{layer}."
        attention = {
            "q": (hidden, hidden),
            "k": (narrow, hidden),
            "v": (narrow, hidden),
            "o": (hidden, hidden),
        }
        found |= {f"{block}self_attn.{name}_proj.weight": sizes for name, sizes in attention.items()}
        if shape.experts:
            found[f"{block}block_sparse_moe.gate.weight"] = (shape.experts, hidden)
        for expert in range(shape.experts):
            part = f"{block}block_sparse_moe.experts.{expert}."
            found |= {f"{part}w{n}.weight": (hidden, ffn) if n == 2 else (ffn, hidden) for n in (1, 2, 3)}
        if not shape.experts:
            found |= {f"{block}mlp.{name}_proj.weight": (ffn, hidden) for name in ("gate", "up")}
            found[f"{block}mlp.down_proj.weight"] = (hidden, ffn)
        found |= {f"{block}{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
    return found | {"model.norm.weight": (hidden,), "lm_head.weight": (shape.vocabulary, hidden)}

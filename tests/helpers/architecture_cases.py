"""The architectures that are tried: a tiny checkpoint of each, made on the spot with random weights.

The windows are shorter than the prompt that is compared (32 tokens), so that a wrong window or a wrong rotary
base shows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import checkpoints
from checkpoints import SMALL

MHA = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 256}
LLAMA3_ROPE = {
    "rope_theta": 500000.0,
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN_ROPE = {
    "rope_theta": 10000.0,
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1 + index / 50 for index in range(32)],
    "long_factor": [1.5 + index for index in range(32)],
    "original_max_position_embeddings": 64,
}
ENCODER = {key: value for key, value in MHA.items() if key != "max_position_embeddings"} | {
    "max_position_embeddings": 258
}
SCALE_1_8 = {"query_pre_attn_scalar": 64, "head_dim": 64}


@dataclass(frozen=True)
class Case:
    """A checkpoint to make.

    ``refused``: words of the problem that it must end with; ``warned``: words of a warning or remark that is
    given; ``completed``: the keys that ggq has to give to the converter; ``change``: what is done to the
    finished folder; ``computed``: False where transformers has no such class; ``quantized``: False where no
    preset is made; ``tested``: by `make test`, not only by `make test-all`.
    """

    name: str
    model: str
    config: str
    tokenizer: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    shards: bool = False
    as_bin: bool = False
    tokenizer_files: Literal["model", "both", "json"] = "model"
    added_tokens: Sequence[str] = ()
    change: Callable[[Path], None] | None = None
    refused: str = ""
    warned: str = ""
    completed: Mapping[str, object] = field(default_factory=dict)
    computed: bool = True
    quantized: bool = True
    tested: bool = True


def _case(family: str, tokenizer: str, settings: Mapping[str, Any] = SMALL, **more: Any) -> Case:
    """A case whose classes are named after the family: ``Llama`` -> LlamaForCausalLM, LlamaConfig."""
    name = more.pop("name", family)
    model = more.pop("model", f"{family}ForCausalLM")
    return Case(name, model, more.pop("config", f"{family}Config"), tokenizer, settings, **more)


def _as_llada(folder: Path) -> None:
    """A Llama under LLaDA's names: its config and its code, which tells when it runs; llama.cpp's converter
    asks transformers to trust it."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    code = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\n"
    (folder / "configuration_llada.py").write_text(code, encoding="utf-8")
    checkpoints.write_json(
        folder / "config.json",
        {
            "architectures": ["LLaDAModelLM"],
            "model_type": "llada",
            "auto_map": {
                "AutoConfig": "configuration_llada.LLaDAConfig",
                "AutoModelForCausalLM": "configuration_llada.LLaDAModelLM",
            },
            "d_model": config["hidden_size"],
            "n_layers": config["num_hidden_layers"],
            "n_heads": config["num_attention_heads"],
            "n_kv_heads": config["num_attention_heads"],
            "mlp_hidden_size": config["intermediate_size"],
            "max_sequence_length": config["max_position_embeddings"],
            "vocab_size": config["vocab_size"],
            "rms_norm_eps": config["rms_norm_eps"],
            "rope_theta": 10000.0,
            "weight_tying": False,
        },
    )

    def rename(tensors: dict[str, Any]) -> None:
        names = (
            ("model.embed_tokens", "model.transformer.wte"), ("model.norm", "model.transformer.ln_f"),
            ("lm_head", "model.transformer.ff_out"), ("model.layers", "model.transformer.blocks"),
            ("self_attn.o_proj", "attn_out"), ("self_attn.", ""), ("mlp.gate_proj", "ff_proj"),
            ("mlp.up_proj", "up_proj"), ("mlp.down_proj", "ff_out"), ("input_layernorm", "attn_norm"),
            ("post_attention_layernorm", "ff_norm"),
        )  # fmt: skip
        for name in list(tensors):
            renamed = name
            for old, new in names:
                renamed = renamed.replace(old, new)
            tensors[renamed] = tensors.pop(name)

    checkpoints.edit_tensors(folder, rename)


CASES: Sequence[Case] = (
    _case("Llama", "sentencepiece", tested=False),
    _case("Llama", "sentencepiece", name="Llama, 2 shards", dtype="bfloat16", shards=True),
    _case(
        "Llama",
        "sentencepiece",
        {**SMALL, "tie_word_embeddings": True},
        name="Llama, tied",
        dtype="float16",
        tested=False,
    ),
    _case("Llama", "sentencepiece", name="Llama, .bin", dtype="bfloat16", as_bin=True, tested=False),
    _case(
        "Llama",
        "sentencepiece",
        name="Llama, tokenizer.json only",
        tokenizer_files="json",
        warned="made of its tokenizer.json",
    ),
    _case("Llama", "llama-3", {**SMALL, "rope_parameters": LLAMA3_ROPE}, name="Llama, Llama 3 rope"),
    _case("Llama", "gpt2", {**SMALL, "rope_parameters": YARN_ROPE}, name="Llama, YaRN", tested=False),
    _case(
        "Llama",
        "gpt2",
        {**SMALL, "rope_parameters": {**YARN_ROPE, "beta_fast": 8.0}},
        name="Llama, YaRN with a beta_fast",
        warned="takes YaRN's beta_fast for 32",
        tested=False,
    ),
    _case(
        "Llama",
        "gpt2",
        {**SMALL, "rope_parameters": {**YARN_ROPE, "attention_factor": 1.0}},
        name="Llama, YaRN with an attention_factor",
        refused="positions are not the checkpoint's",
        tested=False,
    ),
    _case(
        "Mistral",
        "sentencepiece",
        {**SMALL, "sliding_window": None},
        dtype="bfloat16",
        tokenizer_files="both",
        tested=False,
    ),
    _case(
        "Mistral",
        "sentencepiece",
        {**SMALL, "sliding_window": 16},
        name="Mistral, sliding window",
        refused="does not compute what the checkpoint computes",
    ),
    _case(
        "Mistral",
        "sentencepiece",
        {**SMALL, "sliding_window": 64},
        name="Mistral, longer window",
        warned="looks back 64 tokens at most",
        tested=False,
    ),
    _case(
        "Mixtral",
        "sentencepiece",
        {**SMALL, "num_local_experts": 4, "sliding_window": None},
        tested=False,
    ),
    _case("Qwen2", "qwen2", dtype="bfloat16", warned="splits as qwen2 does"),
    _case("Qwen2", "sentencepiece", name="Qwen2, SentencePiece", tokenizer_files="both", tested=False),
    _case("Qwen3", "qwen2", {**SMALL, "head_dim": 64}, dtype="bfloat16", shards=True, tested=False),
    _case("Qwen3Moe", "gpt2", {**SMALL, **EXPERTS, "head_dim": 64, "norm_topk_prob": True}, dtype="bfloat16"),
    _case(
        "Qwen3Moe",
        "gpt2",
        {**SMALL, **EXPERTS, "head_dim": 64},
        name="Qwen3Moe, norm_topk_prob off",
        refused="norm_topk_prob is false",
        tested=False,
    ),
    _case("Qwen2Moe", "gpt2", {**SMALL, **EXPERTS, "shared_expert_intermediate_size": 256}, tested=False),
    _case(
        "Qwen3Next",
        "gpt2",
        {**SMALL, **EXPERTS, "num_hidden_layers": 4, "shared_expert_intermediate_size": 256, "head_dim": 64},
        tested=False,
    ),
    _case("Gemma", "gemma", {**SMALL, "head_dim": 64}, tokenizer_files="json", tested=False),
    _case("Gemma2", "gemma", {**SMALL, **SCALE_1_8, "sliding_window": 16}, dtype="bfloat16"),
    _case(
        "Gemma2",
        "gemma",
        {**SMALL, "head_dim": 64},
        name="Gemma2, another scale",
        refused="query_pre_attn_scalar is 256",
        tested=False,
    ),
    _case(
        "Gemma3",
        "gemma",
        {**SMALL, **SCALE_1_8, "num_hidden_layers": 6, "sliding_window": 16},
        config="Gemma3TextConfig",
        dtype="bfloat16",
        tested=False,
    ),
    _case(
        "Gemma3",
        "gemma",
        {**SMALL, **SCALE_1_8, "num_hidden_layers": 6, "sliding_window": 128},
        name="Gemma3, longer window",
        config="Gemma3TextConfig",
        dtype="bfloat16",
        tested=False,
    ),
    _case(
        "Gemma3",
        "gemma",
        {**SMALL, "head_dim": 64, "sliding_window": 16},
        name="Gemma3, another scale",
        config="Gemma3TextConfig",
        refused="query_pre_attn_scalar is 256",
        tested=False,
    ),
    _case(
        "Gemma3",
        "gemma",
        {**SMALL, **SCALE_1_8, "sliding_window": 16, "sliding_window_pattern": 2},
        name="Gemma3, another pattern",
        config="Gemma3TextConfig",
        refused="not five with a sliding window",
        tested=False,
    ),
    _case("Phi", "gpt2", {**MHA, "intermediate_size": 1024}, tested=False),
    _case(
        "Phi",
        "gpt2",
        MHA,
        name="Phi, another width",
        refused="llama.cpp does not load base.gguf. check_tensor_dims",
    ),
    _case(
        "Phi3",
        "sentencepiece",
        {**SMALL, "pad_token_id": 0, "original_max_position_embeddings": 256},
        tokenizer_files="both",
        tested=False,
    ),
    _case(
        "Phi3",
        "sentencepiece",
        {**SMALL, "pad_token_id": 0, "original_max_position_embeddings": 256, "sliding_window": 16},
        name="Phi3, sliding window",
        refused="does not compute what the checkpoint computes",
        tested=False,
    ),
    _case(
        "Phi3",
        "sentencepiece",
        {
            **SMALL,
            "pad_token_id": 0,
            "max_position_embeddings": 1024,
            "original_max_position_embeddings": 64,
            "rope_parameters": LONG_ROPE,
        },
        name="Phi3, LongRoPE",
        quantized=False,
        tested=False,
    ),
    _case(
        "GPT2",
        "gpt2",
        {"n_embd": 256, "n_layer": 2, "n_head": 4, "n_positions": 256},
        model="GPT2LMHeadModel",
        dtype="float16",
        completed={"n_ctx": 256},
    ),
    _case("GPTNeoX", "gpt2", MHA, completed={"rotary_pct": 0.25}, tested=False),
    _case("GPTBigCode", "gpt2", {"n_embd": 256, "n_layer": 2, "n_head": 4, "n_positions": 256}, tested=False),
    _case("StableLm", "gpt2", dtype="bfloat16", tested=False),
    _case("Olmo2", "gpt2", tested=False),
    _case("Olmoe", "gpt2", {**MHA, "num_experts": 4, "num_experts_per_tok": 2}, tested=False),
    _case("Granite", "gpt2", dtype="bfloat16", tested=False),
    _case("GraniteMoe", "gpt2", {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2}, tested=False),
    _case("Starcoder2", "gpt2", {**SMALL, "sliding_window": None}, tested=False),
    _case("Cohere", "gpt2", dtype="bfloat16", tested=False),
    _case(
        "Cohere2",
        "gpt2",
        {**SMALL, "num_hidden_layers": 4, "sliding_window": 16},
        completed={"rotary_pct": 1.0},
    ),
    _case(
        "Mamba",
        "gpt2",
        {"hidden_size": 256, "num_hidden_layers": 2, "state_size": 16},
        dtype="bfloat16",
        completed={"pad_vocab_size_multiple": 1},
    ),
    _case(
        "Mamba2",
        "gpt2",
        {
            "hidden_size": 256,
            "num_hidden_layers": 2,
            "state_size": 16,
            "num_heads": 8,
            "head_dim": 64,
            "n_groups": 1,
        },
        completed={"pad_vocab_size_multiple": 1},
        tested=False,
    ),
    _case(
        "Falcon",
        "gpt2",
        {
            "hidden_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "new_decoder_architecture": True,
            "num_kv_heads": 2,
        },
        tested=False,
    ),
    _case("Bloom", "gpt2", {"hidden_size": 256, "n_layer": 2, "n_head": 4}, tested=False),
    _case(
        "OPT",
        "gpt2",
        {
            "hidden_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 512,
            "word_embed_proj_dim": 256,
        },
        refused="does not know the architecture OPTForCausalLM",
        tested=False,
    ),
    _case("SmolLM3", "sentencepiece", {**SMALL, "pad_token_id": 0}, tested=False),
    _case(
        "GptOss",
        "gpt2",
        {**SMALL, "head_dim": 64, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16},
        tested=False,
    ),
    _case(
        "DeepseekV3",
        "gpt2",
        {
            **SMALL,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
            "n_group": 1,
            "topk_group": 1,
            "q_lora_rank": 32,
            "kv_lora_rank": 32,
            "qk_rope_head_dim": 16,
            "qk_nope_head_dim": 32,
            "v_head_dim": 32,
            "first_k_dense_replace": 1,
            "num_key_value_heads": 4,
        },
        completed={"scoring_func": "sigmoid"},
        tested=False,
    ),
    _case("Glm4", "gpt2", {**SMALL, "pad_token_id": 0, "head_dim": 64}, refused="It asks for", tested=False),
    _case(
        "Exaone4",
        "gpt2",
        {**SMALL, "num_hidden_layers": 4, "sliding_window": 16},
        refused="64 layers only",
        tested=False,
    ),
    _case("Nemotron", "sentencepiece", tested=False),
    _case("SeedOss", "gpt2", {**SMALL, "head_dim": 64}, tested=False),
    _case("Ernie4_5", "sentencepiece", tested=False),
    _case(
        "GraniteMoeHybrid",
        "gpt2",
        {
            **SMALL,
            "num_hidden_layers": 4,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 256,
            "mamba_n_heads": 8,
            "mamba_d_head": 64,
            "mamba_d_state": 16,
            "mamba_n_groups": 1,
            "layer_types": ["mamba", "mamba", "attention", "mamba"],
            "position_embedding_type": "nope",
        },
        tested=False,
    ),
    _case(
        "Glm4Moe",
        "llama-3",
        {
            **SMALL,
            **EXPERTS,
            "head_dim": 64,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
            "use_qk_norm": True,
            "pad_token_id": 0,
        },
        added_tokens=(
            "[MASK]",
            "[gMASK]",
            "[sMASK]",
            "<sop>",
            "<eop>",
            "<|system|>",
            "<|user|>",
            "<|assistant|>",
            "<|observation|>",
        ),
        tested=False,
    ),
    _case(
        "NemotronH",
        "gpt2",
        {
            **SMALL,
            "num_hidden_layers": 4,
            "layers_block_type": ["mamba", "attention", "mlp", "mamba"],
            "head_dim": 64,
            "mamba_num_heads": 8,
            "mamba_head_dim": 64,
            "ssm_state_size": 16,
            "n_groups": 1,
        },
        tested=False,
    ),
    _case(
        "Llama",
        "gpt2",
        MHA,
        name="LLaDA, with its code",
        change=_as_llada,
        computed=False,
        quantized=False,
        tested=False,
    ),
    _case("Bert", "wordpiece", ENCODER, model="BertModel"),
    _case("XLMRoberta", "unigram", {**ENCODER, "type_vocab_size": 1}, model="XLMRobertaModel"),
    _case(
        "ModernBert",
        "gpt2",
        {
            **ENCODER,
            "num_hidden_layers": 3,
            "max_position_embeddings": 256,
            **dict.fromkeys(("pad_token_id", "cls_token_id", "sep_token_id"), 0),
        },
        model="ModernBertModel",
        completed={"layer_norm_eps": 1e-05},
        tested=False,
    ),
    _case("Lfm2", "gpt2", {**SMALL, "layer_types": ["conv", "full_attention"]}, tested=False),
)

"""What llama.cpp takes for granted of an architecture, without reading it from the GGUF.

A checkpoint that differs would convert without a word and compute something else. Each rule names the place
in llama.cpp's sources that it was read off; with a new pin, look there again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Config = Mapping[str, Any]


def broken(config: Config) -> str | None:
    """A sentence on what ``config`` (as AutoConfig has it) sets and llama.cpp cannot do, or None."""
    text = config.get("text_config")
    part = {**config, **text} if isinstance(text, Mapping) else config
    rule = _RULES.get(str(part.get("model_type")))
    return rule(part) if rule else None


def unknown_activation(config: Config) -> str | None:
    """A sentence on an activation that transformers does not have, in the config of a model that it has: it
    could not be run, and llama.cpp takes its own for it without a word."""
    from transformers.activations import ACT2FN
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    text = config.get("text_config")
    for part in (config, text if isinstance(text, Mapping) else {}):
        if part.get("model_type") not in CONFIG_MAPPING_NAMES:
            continue
        for key in ("hidden_act", "hidden_activation", "activation_function"):
            name = part.get(key)
            if name is not None and name not in ACT2FN:
                return f"Its {key} is {str(name)[:40]!r}, which transformers does not know."
    return None


def _gemma_scale(layers_of_27b: int) -> Callable[[Config], str | None]:
    """src/models/gemma2.cpp and gemma3.cpp: ``f_attention_scale`` is 1/√head_dim, but for the 27B, which is
    known by its number of layers, 1/√(hidden_size/heads). ``query_pre_attn_scalar`` is not in the GGUF."""

    def rule(config: Config) -> str | None:
        scalar = config.get("query_pre_attn_scalar")
        expected = config.get("head_dim")
        if config.get("num_hidden_layers") == layers_of_27b:
            expected = config["hidden_size"] // config["num_attention_heads"]
        if scalar is None or expected is None or scalar == expected:
            return None
        return (
            f"Its query_pre_attn_scalar is {scalar}; llama.cpp always scales this architecture's attention "
            f"by 1/√{expected}, and a GGUF cannot say otherwise."
        )

    return rule


def _gemma3(config: Config) -> str | None:
    """src/models/gemma3.cpp: ``load_swa_pattern(ml, 6)``, which the converter never overrides; without a
    window (``sliding_window_pattern`` of 1) every layer sees everything."""
    layers = config.get("layer_types") or []
    usual = ["full_attention" if index % 6 == 5 else "sliding_attention" for index in range(len(layers))]
    if list(layers) != usual and set(layers) != {"full_attention"}:
        return (
            "Its layer_types are not five with a sliding window and one without, in turn; "
            "llama.cpp knows this architecture in that order only."
        )
    return _gemma_scale(62)(config)


def _norm_topk(expected: bool) -> Callable[[Config], str | None]:
    """src/models/qwen3moe.cpp, qwen2moe.cpp, olmoe.cpp: the argument ``norm_w`` of ``build_moe_ffn``."""

    def rule(config: Config) -> str | None:
        found = config.get("norm_topk_prob", expected)
        if bool(found) == expected:
            return None
        return (
            f"Its norm_topk_prob is {str(found).lower()}; llama.cpp always takes it for "
            f"{str(expected).lower()} in this architecture."
        )

    return rule


def _exaone4(config: Config) -> str | None:
    """src/models/exaone4.cpp: ``swa_type`` is set for 64 layers only."""
    if "sliding_attention" in (config.get("layer_types") or ()) and config.get("num_hidden_layers") != 64:
        return (
            f"It has a sliding window and {config.get('num_hidden_layers')} layers; "
            "llama.cpp knows the window of this architecture with 64 layers only."
        )
    return None


def _hybrid(config: Config) -> str | None:
    """conversion/granite.py and nemotron.py, ``set_vocab``: the tokens are filled up to a multiple of 8, the
    rows of the embedding are not. src/models/nemotron-h.cpp: ``n_expert`` decides for all layers at once
    which kind of feed-forward they have."""
    layers = config.get("layers_block_type") or config.get("layer_types") or ()
    tokens = config.get("vocab_size")
    if {"mamba", "linear_attention"}.intersection(layers) and isinstance(tokens, int) and tokens % 8:
        return (
            f"Its embedding has {tokens} rows; for this architecture llama.cpp's converter makes "
            f"{tokens + -tokens % 8} tokens, a multiple of 8, which then do not fit."
        )
    if {"moe", "mlp"} <= set(layers):
        return (
            "It has layers with experts and layers without; llama.cpp knows this architecture with one kind."
        )
    return None


_RULES: Mapping[str, Callable[[Config], str | None]] = {
    "gemma2": _gemma_scale(46),
    "gemma3_text": _gemma3,
    "qwen3_moe": _norm_topk(True),
    "qwen2_moe": _norm_topk(False),
    "olmoe": _norm_topk(False),
    "exaone4": _exaone4,
    "granitemoehybrid": _hybrid,
    "nemotron_h": _hybrid,
}

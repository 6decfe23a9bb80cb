"""The numbers of a config, compared with the tensors that the weights have, before anything is made of them.

transformers and the converter count to what a config says: layers, experts, tokens. A config of 600 bytes
that says 50 million layers would take gigabytes. Exact agreement is not asked for here; only what is out of
all proportion, or of another kind than a number, is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ggq.checkpoint.safetensors_header import CheckpointTensor
from ggq.errors import CheckpointProblem
from ggq.system.untrusted import shown

LAYERS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers", "num_encoder_layers",
    "encoder_layers", "decoder_layers", "depth", "num_nextn_predict_layers", "num_hidden_groups",
)  # fmt: skip
EXPERTS = (
    "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "n_shared_experts",
    "num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "num_shared_experts", "n_group",
)  # fmt: skip
SIZES = (
    "hidden_size", "n_embd", "d_model", "dim", "intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner",
    "d_ff", "moe_intermediate_size", "vocab_size", "num_attention_heads", "n_head", "n_heads", "num_heads",
    "num_key_value_heads", "num_kv_heads", "head_dim", "d_kv", "kv_lora_rank", "q_lora_rank",
    "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "state_size", "mamba_d_state", "conv_kernel",
    "mamba_d_conv", "type_vocab_size",
)  # fmt: skip
POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
# Names, which the converter or transformers looks up.
NAMES = ("hidden_act", "hidden_activation", "activation_function", "model_type", "torch_dtype", "dtype")
NUMBERS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "rope_theta", "rotary_pct")
TABLES = ("rope_scaling", "rope_parameters", "quantization_config", "text_config", "vision_config")

_MOST_LAYERS = 10_000
_MOST_EXPERTS = 65_536
_MOST_ROWS = 1 << 21  # without headers; the largest vocabularies have some 260,000 tokens
_MOST_POSITIONS = 1 << 31
_LONGEST_LIST = 100_000
# A layer has several tensors, but some families use one set of them for all layers; packed weights show an
# eighth or a sixteenth of a side.
_LAYERS_PER_TENSOR, _SPARE_LAYERS, _SIDES = 4, 64, 16
_SPARE_SIZE = 4096
_DEPTH = 8


def check(file: Path, config: Mapping[str, Any], tensors: Sequence[CheckpointTensor]) -> None:
    """Raises CheckpointProblem for what no model of these tensors says. ``tensors``: none if not known."""
    layers, experts, size = _MOST_LAYERS, _MOST_EXPERTS, _MOST_ROWS
    if tensors:
        side = max((max(tensor.shape, default=1) for tensor in tensors), default=1)
        layers = min(layers, _LAYERS_PER_TENSOR * len(tensors) + _SPARE_LAYERS)
        experts = min(experts, max(len(tensors), side, _SPARE_LAYERS))
        size = max(_SIDES * side, _SPARE_SIZE)
    limits = {
        **dict.fromkeys(LAYERS, layers),
        **dict.fromkeys(EXPERTS, experts),
        **dict.fromkeys(SIZES, size),
        **dict.fromkeys(POSITIONS, _MOST_POSITIONS),
    }
    for key, value in _entries(config, _DEPTH):
        name = key.rsplit(".", 1)[-1]
        if name in limits:
            _check_count(file, key, value, limits[name], bool(tensors) and name not in POSITIONS)
        elif name in NAMES and not (value is None or isinstance(value, str)):
            _refuse(file, f"{key} is {_seen(value)}, not a name")
        elif name in NUMBERS and not _is_number(value):
            _refuse(file, f"{key} is {_seen(value)}, not a number")
        elif name in TABLES and not (value is None or isinstance(value, dict)):
            _refuse(file, f"{key} is {_seen(value)}, not an object")
        elif name == "layer_types" and not (value is None or _is_list_of_names(value, layers)):
            _refuse(file, f"{key} is {_seen(value)}, not a list of one name for each layer")
        elif isinstance(value, list) and len(value) > _LONGEST_LIST:
            _refuse(file, f"{key} has {len(value):,} entries; up to {_LONGEST_LIST:,} are read")
        if isinstance(value, str) and "\0" in value:
            _refuse(file, f"{key} is {_seen(value)}, which holds a NUL")


def _entries(config: Mapping[str, Any], depth: int, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The keys of a config and of its parts (``text_config.vocab_size``), with their values. Parts that are
    tables by name (labels, tokens) are many and small: nothing in them is counted to."""
    for key, value in config.items():
        yield prefix + key, value
        if isinstance(value, dict) and depth and (key.endswith("_config") or key in TABLES):
            yield from _entries(value, depth - 1, f"{prefix}{key}.")


def _check_count(file: Path, key: str, value: Any, most: int, by_tensors: bool) -> None:
    """A count, or one for each layer."""
    if value is None or isinstance(value, dict):  # of several parts, by name
        return
    if isinstance(value, float) and value.is_integer() and key.endswith(POSITIONS):
        value = int(value)
    counts = value if isinstance(value, list) else [value]
    for count in counts:
        if isinstance(count, list) and all(type(inner) is int and 0 <= inner <= most for inner in count):
            continue
        if type(count) is not int:
            if count is None:
                continue
            _refuse(file, f"{key} is {_seen(value)}, not a whole number")
        if count < 0 and not (count == -1 and not key.endswith(LAYERS)):
            _refuse(file, f"{key} is {_seen(count)}, less than nothing")
        if count > most:
            than = "than the tensors of the weights allow" if by_tensors else f"than {most:,}"
            _refuse(file, f"{key} is {_seen(count)}, far more {than}")
    if len(counts) > _MOST_LAYERS:
        _refuse(file, f"{key} has {len(counts):,} entries")
    if key in LAYERS[:4] and value == 0:
        _refuse(file, f"{key} is 0: there is no model without layers")


def _is_number(value: Any) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 1 << 62
    return value is None or isinstance(value, (float, dict, list))


def _is_list_of_names(value: Any, most: int) -> bool:
    return isinstance(value, list) and len(value) <= most and all(isinstance(item, str) for item in value)


def _seen(value: Any) -> str:
    return shown(value, 40) if isinstance(value, str) else str(value)[:40]


def _refuse(file: Path, why: str) -> NoReturn:
    raise CheckpointProblem(
        f"{file} does not fit a model.",
        f"{why}.",
        "Get config.json again from the model's source (`ggq download` checks it), or correct that key.",
    )

"""A config's numbers against the tensors: nothing counts to what no model has."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ggq.checkpoint import bounds as checkpoint_bounds
from ggq.checkpoint import checkpoint
from ggq.checkpoint.safetensors_header import CheckpointTensor
from ggq.errors import CheckpointProblem

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "vocab_size": 600,
    "hidden_act": "silu",
    "rope_theta": 10000.0,
    "time_step_limit": [0.0, float("inf")],
    "sliding_window": -1,
    "max_position_embeddings": 10_485_760,
}
TENSORS = [CheckpointTensor(f"model.layers.{index}.w", "F32", (600, 64), "x", 1) for index in range(12)]


def check(tensors: list[CheckpointTensor] = TENSORS, **keys: Any) -> None:
    checkpoint_bounds.check(Path("config.json"), CONFIG | keys, tensors)


def test_a_plain_config_passes() -> None:
    check()
    check([])
    check(intermediate_size=[512, 1024], layer_types=["full_attention"] * 2, num_key_value_heads=None)
    check(num_experts=0, hidden_act=None, rope_scaling=None, id2label={"0": 5}, n_inner=None)


BAD: list[tuple[str, Any, str]] = [
    *[("num_hidden_layers", value, "layers is") for value in (5 * 10**7, 1 << 40, -1, 0, 2.5, "2", True)],
    *[("num_local_experts", value, "num_local_experts") for value in (1 << 30, -5, "8", False)],
    *[(key, 1 << 30, "far more") for key in ("hidden_size", "vocab_size", "head_dim", "num_attention_heads")],
    ("max_position_embeddings", 1 << 40, "max_position_embeddings"),
    ("max_position_embeddings", "many", "whole number"),
    ("hidden_act", 255, "not a name"),
    ("hidden_act", ["silu"], "not a name"),
    ("rms_norm_eps", "small", "not a number"),
    ("rope_theta", True, "not a number"),
    ("rope_scaling", [1], "not an object"),
    ("quantization_config", "fp8", "not an object"),
    ("layer_types", ["full_attention"] * 100_000, "layer_types"),
    ("layer_types", [5], "layer_types"),
    ("anything", [0] * 200_000, "entries"),
    ("model_type", "lla\0ma", "NUL"),
    ("text_config", {"num_hidden_layers": 50_000_000}, "text_config.num_hidden_layers"),
    ("text_config", {"vision_config": {"depth": 1 << 40}}, "text_config.vision_config.depth"),
    ("text_config", 5, "not an object"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "words"), BAD)
def test_what_no_model_says(key: str, value: Any, words: str) -> None:
    with pytest.raises(CheckpointProblem) as raised:
        check(**{key: value})
    assert words in raised.value.why and len(str(raised.value)) < 400


def test_without_headers_there_are_bounds_too() -> None:
    for key in ("num_hidden_layers", "vocab_size", "num_experts"):
        with pytest.raises(CheckpointProblem):
            check([], **{key: 1 << 30})


def test_a_checkpoint_is_held_against_its_headers(example: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(example, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 9000}))
    with pytest.raises(CheckpointProblem, match="far more than the tensors of the weights allow"):
        checkpoint.read(folder)

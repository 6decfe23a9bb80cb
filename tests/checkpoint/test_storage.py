"""How weights are stored is read from the tensors: their method, their bits, and the model's parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import write_json
from safetensors.numpy import save_file

from ggq.checkpoint import checkpoint, storage
from ggq.conversion import conversion
from ggq.errors import CheckpointProblem


@dataclass(frozen=True)
class Header:
    name: str
    dtype: str
    shape: tuple[int, ...]


def stored(tensors: Mapping[str, tuple[Any, ...]], method: str = "", **settings: Any) -> storage.Storage:
    headers = [Header(name, dtype, tuple(shape)) for name, (dtype, *shape) in tensors.items()]
    settings = {**({"quant_method": method} if method else {}), **settings}
    return storage.read(headers, {"quantization_config": settings} if settings else {})


W = "model.layers.0.mlp.down_proj"
# A weight of 256 rows and 512 columns in each method's own layout, with what else belongs to it.
GPTQ = {
    f"{W}.qweight": ("I32", 64, 256), f"{W}.qzeros": ("I32", 4, 32), f"{W}.scales": ("F16", 4, 256),
    f"{W}.g_idx": ("I32", 512),
}  # fmt: skip
GPTQ_8 = {**GPTQ, f"{W}.qweight": ("I32", 128, 256), f"{W}.qzeros": ("I32", 4, 64)}
GPTQ_3 = {**GPTQ, f"{W}.qweight": ("I32", 48, 256), f"{W}.qzeros": ("I32", 4, 24)}
AWQ = {f"{W}.qweight": ("I32", 512, 32), f"{W}.qzeros": ("I32", 4, 32), f"{W}.scales": ("F16", 4, 256)}
SCB = {f"{W}.weight": ("I8", 256, 512), f"{W}.SCB": ("F32", 256), f"{W}.weight_format": ("U8",)}
NF4 = {
    f"{W}.weight": ("U8", 65536, 1), f"{W}.weight.absmax": ("U8", 2048), f"{W}.weight.quant_map": ("F32", 16),
    f"{W}.weight.nested_absmax": ("F32", 8), f"{W}.weight.nested_quant_map": ("F32", 256),
    f"{W}.weight.quant_state.bitsandbytes__nf4": ("U8", 92),
}  # fmt: skip
MLX = {f"{W}.weight": ("U32", 256, 64), f"{W}.scales": ("F16", 256, 8), f"{W}.biases": ("F16", 256, 8)}
MLX_8_OF_32 = {
    **MLX,
    f"{W}.weight": ("U32", 256, 128),
    f"{W}.scales": ("F16", 256, 16),
    f"{W}.biases": ("F16", 256, 16),
}
FP8 = {f"{W}.weight": ("F8_E4M3", 256, 512), f"{W}.weight_scale_inv": ("F32", 2, 4)}
FP8_CHANNEL = {f"{W}.weight": ("F8_E4M3", 256, 512), f"{W}.weight_scale": ("BF16", 256, 1)}
PACKED = {
    f"{W}.weight_packed": ("I32", 256, 64), f"{W}.weight_scale": ("BF16", 256, 4),
    f"{W}.weight_shape": ("I64", 2),
}  # fmt: skip
INT8 = {f"{W}.weight": ("I8", 256, 512), f"{W}.weight_scale": ("BF16", 256, 1)}
MXFP4 = {"e.gate_up_proj_blocks": ("U8", 4, 256, 16, 16), "e.gate_up_proj_scales": ("U8", 4, 256, 16)}
NVFP4 = {
    f"{W}.weight": ("U8", 256, 256), f"{W}.weight_scale": ("F8_E4M3", 256, 32),
    f"{W}.weight_scale_2": ("F32",), f"{W}.input_scale": ("F32",),
}  # fmt: skip
BITNET = {f"{W}.weight": ("U8", 64, 512), f"{W}.weight_scale": ("BF16", 1)}
WITHOUT_INDEX = {name: it for name, it in GPTQ.items() if "g_idx" not in name}
MIXED = {**GPTQ, **{f"x.{name}": it for name, it in FP8.items()}}
GROUPS = {"config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 128}}}}
PLAIN = {f"{W}.weight": ("BF16", 256, 512), "model.norm.weight": ("F32", 256)}
COUNT = 256 * 512


@pytest.mark.parametrize(
    ("tensors", "settings", "method", "words"),
    [
        (GPTQ, {"method": "gptq", "bits": 4}, "gptq", "4-bit GPTQ"),
        (GPTQ_8, {"method": "gptq", "bits": 8}, "gptq", "8-bit GPTQ"),
        (FP8, {"method": "fp8", "weight_block_size": [128, 128]}, "fp8", "8-bit FP8"),
        (FP8_CHANNEL, {"method": "compressed-tensors"}, "compressed-tensors", "8-bit FP8"),
        (INT8, {"method": "compressed-tensors"}, "compressed-tensors", "8-bit INT8"),
        (
            PACKED,
            {"method": "compressed-tensors", **GROUPS},
            "compressed-tensors",
            "4-bit compressed-tensors",
        ),
        (NVFP4, {"method": "modelopt"}, "modelopt", "4-bit NVFP4"),
        (BITNET, {"method": "bitnet"}, "bitnet", "2-bit BitNet"),
    ],
)
def test_what_the_converter_unpacks(tensors: Any, settings: Any, method: str, words: str) -> None:
    found = stored(tensors, **settings)
    assert (found.method, found.description, found.refusal, found.ignored) == (method, words, "", "")
    assert found.elements == {f"{W}.weight": COUNT}


def test_mxfp4_experts() -> None:
    found = stored(MXFP4, "mxfp4")
    assert (found.method, found.refusal, found.elements) == ("mxfp4", "", {"e.gate_up_proj": 4 * 256 * 512})


@pytest.mark.parametrize(
    ("tensors", "settings", "method", "words"),
    [
        (AWQ, {}, "awq", "AWQ"),
        (AWQ, {"method": "awq", "bits": 4}, "awq", "AWQ"),
        (AWQ, {"method": "gptq", "bits": 4}, "awq", "AWQ"),
        (SCB, {}, "bitsandbytes", "LLM.int8|does not unpack bitsandbytes"),
        (SCB, {"method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes", "bitsandbytes"),
        (NF4, {}, "bitsandbytes", "bitsandbytes"),
        (MLX, {"bits": 4, "group_size": 64}, "mlx", "MLX"),
        (MLX, {}, "mlx", "MLX"),
        (MLX_8_OF_32, {"bits": 8, "group_size": 32}, "mlx", "MLX"),
        (GPTQ, {}, "gptq", "no quantization_config"),
        (FP8, {}, "fp8", "no quantization_config"),
        (GPTQ, {"method": "gptq", "bits": 8}, "gptq", "says 8 bits, and its tensors are of 4"),
        (GPTQ_3, {"method": "gptq", "bits": 3}, "gptq", "3 bits"),
        (GPTQ, {"method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "gptq", "marlin"),
        (WITHOUT_INDEX, {"method": "gptq", "bits": 4}, "gptq", "lacks .*g_idx"),
        (GPTQ, {"method": "fp8"}, "gptq", "names 'fp8'.*another method"),
        (FP8, {"method": "gptq", "bits": 4}, "fp8", "names 'gptq'"),
        (MIXED, {"method": "gptq", "bits": 4}, "gptq", "another method"),
    ],
)  # fmt: skip
def test_what_it_does_not_unpack(tensors: Any, settings: Any, method: str, words: str) -> None:
    import re

    found = stored(tensors, **settings)
    assert found.method == method and re.search(words, found.refusal)
    assert found.elements is not None and set(found.elements.values()) == {COUNT}


def test_whole_numbers_of_an_unknown_kind_are_refused_and_not_counted() -> None:
    found = stored({f"{W}.weight": ("I32", 256, 64)})
    assert "does not know" in found.refusal and found.elements is None
    found = stored({f"{W}.W_q": ("U8", 256, 256), f"{W}.meta": ("U8", 9)}, "hqq")
    assert found.method == "hqq" and "HQQ" in found.refusal and found.elements is None


def test_buffers_are_no_packed_weights() -> None:
    tensors = {**PLAIN, "h.0.attn.bias": ("U8", 1, 1, 1024, 1024), "embeddings.position_ids": ("I64", 1, 512)}
    assert stored(tensors).method is None and not stored(tensors).refusal


def test_eight_bit_floats_without_a_scale_are_plain() -> None:
    found = stored({f"{W}.weight": ("F8_E4M3", 256, 512)})
    assert found == storage.Storage(elements={f"{W}.weight": COUNT})


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "fp8", "hqq"])
def test_a_setting_that_the_tensors_do_not_show_is_out_of_date(method: str) -> None:
    found = stored(PLAIN, method)
    assert (found.method, found.ignored, found.refusal) == (None, method, "")
    assert method in found.remark


def test_a_method_that_ggq_does_not_know_is_never_taken_for_out_of_date() -> None:
    found = stored(PLAIN, "rotated_4bit")
    assert found.refusal and not found.ignored


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "float16"}
    write_json(folder / "config.json", {**config, "tie_word_embeddings": False})
    write_json(folder / "tokenizer.json", {"model": {}})
    return folder


def save(folder: Path, tensors: Mapping[str, tuple[Any, ...]], form: str = "pt") -> checkpoint.Checkpoint:
    types = {
        "I32": np.int32,
        "F16": np.float16,
        "I8": np.int8,
        "U8": np.uint8,
        "F32": np.float32,
        "I64": np.int64,
    }
    arrays = {name: np.zeros(shape, types[dtype]) for name, (dtype, *shape) in tensors.items()}
    save_file(arrays, folder / "model.safetensors", {"format": form})
    return checkpoint.read(folder)


TABLES = {"model.embed_tokens.weight": ("F16", 32, 256), "lm_head.weight": ("F16", 32, 256)}


def test_the_disk_need_is_the_models_not_that_of_its_packed_numbers(folder: Path) -> None:
    found = save(folder, {**TABLES, **GPTQ})
    assert found.parameter_count == COUNT + 2 * 32 * 256
    assert conversion.needed_bytes(found, "f16") >= 2 * found.parameter_count


def test_a_missing_head_is_named(folder: Path) -> None:
    whole = save(folder, TABLES)
    checkpoint.require_convertible(whole)
    without = save(folder, {"model.embed_tokens.weight": ("F16", 32, 256)})
    with pytest.raises(CheckpointProblem, match=r"Weights of .* are missing") as caught:
        checkpoint.require_convertible(without)
    assert "lm_head.weight is missing and the config says that it is not tied" in caught.value.why
    for tied in ({**without.config, "tie_word_embeddings": True}, {"architectures": ["LlamaModel"]}):
        checkpoint.require_convertible(replace(without, config=tied))


def test_a_head_beside_a_tied_one_is_told(folder: Path) -> None:
    found = save(folder, TABLES)
    assert checkpoint.remark(found) == ""
    tied = replace(found, config={**found.config, "tie_word_embeddings": True})
    assert "the weights hold lm_head.weight" in checkpoint.remark(tied)
    inner = replace(tied, config={"architectures": ["A"], "text_config": {"tie_word_embeddings": True}})
    assert checkpoint.remark(inner)


def test_a_head_of_another_name_is_one(folder: Path) -> None:
    table = TABLES["lm_head.weight"]
    checkpoint.require_convertible(save(folder, {"model.embed_tokens.weight": table, "my.way.weight": table}))
    packed = {name.replace(W, "lm_head"): it for name, it in GPTQ.items()}
    config = {"quant_method": "gptq", "bits": 4}
    found = save(folder, {"model.embed_tokens.weight": table, **packed})
    checkpoint.require_convertible(replace(found, config={**found.config, "quantization_config": config}))


def test_what_went_through_mlx(folder: Path) -> None:
    found = save(folder, TABLES, "mlx")
    checkpoint.require_convertible(found)  # a Llama stays as it is
    assert "format: mlx" in checkpoint.remark(found) and "llama" in checkpoint.remark(found)
    with pytest.raises(CheckpointProblem, match="MLX") as caught:
        checkpoint.require_convertible(replace(found, config={**found.config, "model_type": "qwen3_next"}))
    assert "format: mlx" in caught.value.why

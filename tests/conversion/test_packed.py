"""Packed weights beside the GGUF's: unpacked by ggq itself where transformers does not run the checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import checkpoints
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize

from ggq.checkpoint import checkpoint
from ggq.conversion import compare_packed, convert
from ggq.conversion.compare_packed import Unpacked
from ggq.conversion.parameter_count import Account
from ggq.conversion.verification import Findings, verdict
from ggq.errors import ConversionProblem
from ggq.gguf import file as gguf_file
from ggq.llamacpp.toolchain import Toolchain
from ggq.session import Session

pytestmark = pytest.mark.torch

ROWS, COLUMNS, GROUP, HEADS = 64, 128, 32, 4
DOWN, QUERY = "model.layers.0.mlp.down_proj", "model.layers.0.self_attn.q_proj"
NAMES = {DOWN: "blk.0.ffn_down.weight", QUERY: "blk.0.attn_q.weight"}


def pack(numbers: Any, axis: int, bits: int) -> Any:
    """Whole numbers into words, the first one lowest."""
    import torch

    parts = numbers.unflatten(axis, (-1, 32 // bits)).to(torch.int64)
    words = sum(parts.select(axis + 1, place) << bits * place for place in range(32 // bits))
    return words.to(torch.uint32).contiguous().view(torch.int32)


def gptq(stem: str, weight: Any, bits: int, *, act_order: bool = True, offset: int = 1) -> dict[str, Any]:
    """The packed form of a weight, and under its own name what it is rounded to."""
    import torch

    columns = weight.shape[1]
    order = torch.randperm(columns) if act_order else torch.arange(columns)
    groups, most = order // GROUP, (1 << bits) - 1
    parts = [weight[:, groups == group] for group in range(columns // GROUP)]
    low, high = torch.stack([part.amin(1) for part in parts]), torch.stack([part.amax(1) for part in parts])
    scales = ((high - low) / most).half()
    zeros = (-low / scales.float()).round().clamp(1, most).int()
    numbers = (weight.T / scales.float()[groups] + zeros[groups]).round().clamp(0, most).int()
    return {
        f"{stem}.qweight": pack(numbers, 0, bits),
        f"{stem}.qzeros": pack(zeros - offset, 1, bits),
        f"{stem}.scales": scales,
        f"{stem}.g_idx": groups.int(),
        f"{stem}.weight": (scales.float()[groups] * (numbers - zeros[groups])).T.contiguous(),
    }


def fp8(stem: str, weight: Any, form: str) -> dict[str, Any]:
    import torch

    kind = torch.float8_e5m2 if form == "rows" else torch.float8_e4m3fn
    blocks = weight.abs().reshape(ROWS // 16, 16, COLUMNS // 32, 32).amax((1, 3))
    scale = {"one": weight.abs().max(), "rows": weight.abs().amax(1, keepdim=True), "blocks": blocks}[
        form
    ] / 400
    spread = scale.repeat_interleave(16, 0).repeat_interleave(32, 1) if form == "blocks" else scale
    stored = (weight / spread).to(kind)
    word = "weight_scale_inv" if form == "blocks" else "weight_scale"
    return {f"{stem}.weight": stored, f"{stem}.{word}": scale, "dense": stored.float() * spread}


def given(folder: Path, tensors: Mapping[str, Any], **settings: Any) -> checkpoint.Checkpoint:
    from safetensors.torch import save_file

    file = folder / "model.safetensors"
    save_file(dict(tensors), file)
    found = SimpleNamespace(config={"quantization_config": settings}, weight_files=(file,))
    return cast("checkpoint.Checkpoint", found)


def gguf(folder: Path, weights: Mapping[str, Any], kind: str = "BF16") -> gguf_file.GgufFile:
    writer = GGUFWriter(folder / "made.gguf", "llama")
    writer.add_block_count(1)
    writer.add_head_count(HEADS)
    number = GGMLQuantizationType[kind]
    for stem, weight in weights.items():
        writer.add_tensor(NAMES[stem], quantize(np.ascontiguousarray(weight), number), raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return gguf_file.read(folder / "made.gguf")


def by_pairs(weight: Any) -> Any:
    return weight.reshape(HEADS, 2, ROWS // HEADS // 2, COLUMNS).swapaxes(1, 2).reshape(weight.shape)


@pytest.fixture
def weight() -> Any:
    import torch

    torch.manual_seed(3)
    return torch.randn(ROWS, COLUMNS) * 0.1 + 0.02


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("kind", ["BF16", "F16", "F32", "Q8_0"])
def test_gptq(tmp_path: Path, weight: Any, bits: int, act_order: bool, kind: str) -> None:
    made = gptq(DOWN, weight, bits, act_order=act_order)
    dense = made.pop(f"{DOWN}.weight").numpy()
    folder = given(tmp_path, made, bits=bits)
    assert compare_packed.compare(folder, gguf(tmp_path, {DOWN: dense}, kind)) == Unpacked(1, 1)


def test_gptq_of_the_second_form(tmp_path: Path, weight: Any) -> None:
    made = gptq(DOWN, weight, 4, offset=0)
    dense = made.pop(f"{DOWN}.weight").numpy()
    second = given(tmp_path, made, bits=4, checkpoint_format="gptq_v2")
    target = gguf(tmp_path, {DOWN: dense})
    assert compare_packed.compare(second, target) == Unpacked(1, 1)
    first = given(tmp_path, made, bits=4)
    assert compare_packed.compare(first, target).wrong == (NAMES[DOWN],)


def test_heads_whose_rows_are_rearranged(tmp_path: Path, weight: Any) -> None:
    made = gptq(QUERY, weight, 4)
    dense = made.pop(f"{QUERY}.weight").numpy()
    folder = given(tmp_path, made, bits=4)
    for rows in (by_pairs(dense), np.roll(dense, 7, axis=0)):
        assert compare_packed.compare(folder, gguf(tmp_path, {QUERY: rows})) == Unpacked(1, 1)


@pytest.mark.parametrize("form", ["one", "rows", "blocks"])
@pytest.mark.parametrize("kind", ["BF16", "F16", "Q8_0"])
def test_fp8(tmp_path: Path, weight: Any, form: str, kind: str) -> None:
    made = fp8(DOWN, weight, form)
    dense = made.pop("dense").numpy()
    folder = given(tmp_path, made, **({"weight_block_size": [16, 32]} if form == "blocks" else {}))
    assert compare_packed.compare(folder, gguf(tmp_path, {DOWN: dense}, kind)) == Unpacked(1, 1)
    assert compare_packed.compare(folder, gguf(tmp_path, {DOWN: dense * 1.02}, kind)).wrong


@pytest.mark.parametrize(
    "fault",
    [
        lambda dense: dense * 1.01,
        lambda dense: dense[:, ::-1],
        lambda dense: np.roll(dense, 1, axis=1),
        lambda dense: np.where(np.arange(COLUMNS) == 5, dense + 0.05, dense),
    ],
)
def test_wrong_values_are_found_and_refused(tmp_path: Path, weight: Any, fault: Callable[[Any], Any]) -> None:
    made = gptq(DOWN, weight, 4)
    dense = made.pop(f"{DOWN}.weight").numpy()
    found = compare_packed.compare(given(tmp_path, made, bits=4), gguf(tmp_path, {DOWN: fault(dense)}))
    assert found == Unpacked(1, 1, (NAMES[DOWN],))
    findings = Findings(1, 1, cast("Account", None), (), {}, {"why_not": "optimum"}, unpacked=found)
    with pytest.raises(ConversionProblem, match="not the checkpoint's") as refused:
        verdict("sampled", "bf16", findings)
    assert NAMES[DOWN] in refused.value.why


def test_what_is_of_another_layout_is_not_compared(tmp_path: Path, weight: Any) -> None:
    made = gptq(DOWN, weight, 4)
    target = gguf(tmp_path, {DOWN: made.pop(f"{DOWN}.weight").numpy()})
    for word, change in {"scales": "double", "qzeros": "short"}.items():
        other = made | {f"{DOWN}.{word}": getattr(made[f"{DOWN}.{word}"], change)()}
        assert compare_packed.compare(given(tmp_path, other, bits=4), target) == Unpacked(1, 0)
    far = made | {f"{DOWN}.g_idx": made[f"{DOWN}.g_idx"] + 9}
    assert compare_packed.compare(given(tmp_path, far, bits=4), target) == Unpacked(1, 0)


@pytest.mark.tool
def test_a_checkpoint_that_transformers_does_not_load(toolchain: Toolchain, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    made = checkpoints.tokenizer(checkpoints.QWEN2)
    checkpoints.model(folder, "Qwen2", vocab_size=made.get_vocab_size())
    checkpoints.save_tokenizer(folder, made, "Qwen2Tokenizer")

    def change(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if name.endswith("proj.weight")]:
            stem = name.removesuffix(".weight")
            tensors |= gptq(stem, tensors[name].float(), 4)
            del tensors[name]

    checkpoints.edit_tensors(folder, change)
    settings = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": True, "sym": False}
    checkpoints.edit(folder / "config.json", quantization_config=settings)
    found = convert(folder, tmp_path / "made.gguf", session=Session(toolchain)).verification
    if found.logits_cosine is not None:
        pytest.skip("this transformers runs GPTQ")
    assert found.why_not and found.unpacked_compared == found.unpacked_tensors > 0

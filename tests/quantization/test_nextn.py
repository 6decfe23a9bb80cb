"""Layers for multi-token prediction, which no forward pass touches; and experts that hardly met a token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import LLAMA3, edit, edit_tensors, model, save_tokenizer, tokenizer
from completion import complete
from job_plans import plan_quantize

import ggq
from ggq.conversion import convert
from ggq.gguf import file as gguf_file
from ggq.llamacpp.toolchain import Toolchain
from ggq.operations.request import Settings
from ggq.quantization import imatrix_file, thin_experts

NAMES = ["[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>",
         "<|observation|>"]  # fmt: skip


def checkpoint(folder: Path) -> Path:
    """Two layers of GLM-4.5-Air's kind, whose config announces a third one for multi-token prediction."""
    from tokenizers import AddedToken

    made = tokenizer(LLAMA3, [AddedToken(name, special=True, normalized=False) for name in NAMES])
    model(
        folder, "Glm4Moe", dtype="bfloat16", vocab_size=made.get_vocab_size(), head_dim=64,
        n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=256, n_shared_experts=1,
        first_k_dense_replace=1, n_group=1, topk_group=1, use_qk_norm=True, pad_token_id=0,
        tie_word_embeddings=False,
    )  # fmt: skip
    save_tokenizer(folder, made, pad_token="<|endoftext|>")
    edit(folder / "config.json", num_nextn_predict_layers=1)
    return folder


def with_third_layer(tensors: dict[str, Any]) -> None:
    import torch

    for name in [name for name in tensors if name.startswith("model.layers.1.")]:
        tensors[name.replace("layers.1.", "layers.2.")] = tensors[name].clone()
    third, one = "model.layers.2.", torch.ones(256, dtype=torch.bfloat16)
    tensors |= {
        f"{third}eh_proj.weight": (torch.randn(256, 512) * 0.02).to(torch.bfloat16),
        f"{third}enorm.weight": one,
        f"{third}hnorm.weight": one.clone(),
        f"{third}shared_head.norm.weight": one.clone(),
        f"{third}embed_tokens.weight": tensors["model.embed_tokens.weight"].clone(),
        f"{third}shared_head.head.weight": tensors["lm_head.weight"].clone(),
    }


@pytest.mark.tool
def test_a_layer_that_the_config_announces_and_the_weights_lack(toolchain: Toolchain, tmp_path: Path) -> None:
    """transformers saves a model without it."""
    done = ggq.convert_and_quantize(
        str(checkpoint(tmp_path / "dropped")), ["q4_k_m"], tmp_path, Settings(threads=1)
    )
    assert done.verification["logits_cosine"] > 0.999
    assert complete(toolchain, done.files[0].paths[0], "Once", 4, threads=1)


@pytest.mark.tool
def test_a_dry_run_promises_what_the_matrix_will_not_know(tmp_path: Path, example: Path) -> None:
    """A context shorter than the usual chunk of 512 tokens, too."""
    folder = checkpoint(tmp_path / "full")
    edit_tensors(folder, with_third_layer)
    base = tmp_path / "full-BF16.gguf"
    convert(folder, base, verify="off")
    text = tmp_path / "text.txt"
    text.write_text((example / "heldout.txt").read_text(encoding="utf-8")[:8000], encoding="utf-8")
    settings = Settings(threads=1, imatrix="auto", imatrix_text=text)
    presets = ["iq2_xs", "q2_k_s", "q4_k_m"]
    plan = plan_quantize(base, presets, None, settings)
    assert plan.makes_imatrix and plan.files[0].uncovered and not plan.files[2].uncovered
    assert all(it.name.startswith("blk.2.") for file in plan.files for it in file.uncovered)
    made = ggq.quantize(base, presets, None, settings).files
    assert [file.size.file_bytes for file in plan.files] == [file.paths[0].stat().st_size for file in made]
    types = {it.name: it.type for it in gguf_file.read(made[0].paths[0]).tensors}
    assert all(types[it.name] == it.type for it in plan.files[0].uncovered)


def test_thin_experts_are_told_with_numbers(tmp_path: Path) -> None:
    import gguf

    file = tmp_path / "matrix.gguf"
    writer = gguf.GGUFWriter(file, "")
    writer.add_type("imatrix")
    for name, counts in (
        ("blk.0.attn_q.weight", [40000]),
        ("blk.5.ffn_up_exps.weight", [15000, 13000, 12000, 12]),
        ("blk.5.ffn_down_exps.weight", [15000, 13000, 12000, 12]),
        ("blk.6.ffn_up_exps.weight", [40000, 0, 39000, 1000]),
    ):
        writer.add_tensor(f"{name}.in_sum2", np.ones((len(counts), 4), np.float32))
        writer.add_tensor(f"{name}.counts", np.array(counts, np.float32).reshape(-1, 1))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = thin_experts.look(imatrix_file.read(file))
    assert [(it.name, it.tokens) for it in found] == [("expert 1 of blk.6", 0), ("expert 3 of blk.5", 12)]
    said = thin_experts.words(found, 40_000)
    assert "expert 3 of blk.5 met 12 of 40,000 tokens (10,003 on average)" in said
    assert not thin_experts.words((), 40_000)

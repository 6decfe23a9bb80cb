"""What transformers computes of a checkpoint, and that the savings on the way change nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ggq.checkpoint import checkpoint, transformers_model

TOKENS = list(range(5, 25))


@pytest.mark.torch
def test_widened_modules_compute_what_a_float32_model_computes(example: Path) -> None:
    import torch
    from transformers import LlamaForCausalLM

    model = transformers_model.load_model(example, "LlamaForCausalLM")
    assert model.dtype == torch.bfloat16
    streamed = transformers_model.logits(model, TOKENS)
    again = transformers_model.logits(model, TOKENS)
    assert model.dtype == torch.bfloat16
    assert (streamed == again).all()
    whole = LlamaForCausalLM.from_pretrained(example, dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = whole(torch.tensor([TOKENS])).logits[0].numpy()
    assert abs(streamed - expected).max() < 1e-4


@pytest.mark.torch
def test_the_last_positions_alone(example: Path) -> None:
    import torch

    model = transformers_model.load_model(example, "LlamaForCausalLM")
    threads = torch.get_num_threads()
    whole = transformers_model.logits(model, TOKENS)
    part = transformers_model.logits(model, TOKENS, last=7, threads=2)
    assert torch.get_num_threads() == threads
    assert whole.shape == (20, 2048) and part.shape == (7, 2048)
    assert abs(whole[-7:] - part).max() < 1e-4


@pytest.mark.torch
def test_a_class_that_transformers_does_not_have(example: Path) -> None:
    with pytest.raises(LookupError, match="has no NobodyForCausalLM"):
        transformers_model.load_model(example, "NobodyForCausalLM")


def test_the_memory_that_is_needed(example: Path, tmp_path: Path) -> None:
    given = checkpoint.read(example)
    embedding_bytes = 4 * 2048 * 256
    assert transformers_model.needed_bytes(given) - given.weight_bytes >= embedding_bytes
    folder = Path(shutil.copytree(example, tmp_path / "model"))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")  # which is not looked into
    unseen = checkpoint.read(folder)
    assert transformers_model.needed_bytes(unseen) > 2 * unseen.weight_bytes

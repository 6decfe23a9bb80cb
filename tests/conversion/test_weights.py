"""Weights that are missing, or do not fit the config, are named and refused: never "not compared"."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import checkpoints
import pytest

from ggq.checkpoint import transformers_model
from ggq.conversion import compare_logits, convert
from ggq.errors import CheckpointProblem, ConversionProblem
from ggq.llamacpp.toolchain import Toolchain
from ggq.session import Session


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = checkpoints.tokenizer(checkpoints.QWEN2)
    folder = tmp_path / "model"
    checkpoints.model(folder, "Qwen2", vocab_size=made.get_vocab_size())
    checkpoints.save_tokenizer(folder, made, "Qwen2Tokenizer")
    return folder


BIAS = "model.layers.1.self_attn.k_proj.bias"


@pytest.mark.torch
def test_a_missing_tensor_is_named(folder: Path) -> None:
    checkpoints.edit_tensors(folder, lambda tensors: tensors.__delitem__(BIAS))
    with pytest.raises(CheckpointProblem, match="1 tensor is missing") as caught:
        compare_logits.reference(folder, "Qwen2ForCausalLM", None)
    assert BIAS in caught.value.why


@pytest.mark.torch
def test_a_shape_that_does_not_fit_is_named(folder: Path) -> None:
    checkpoints.edit_tensors(folder, lambda tensors: tensors.update({BIAS: tensors[BIAS][:64]}))
    with pytest.raises(CheckpointProblem, match="do not fit the config") as caught:
        compare_logits.reference(folder, "Qwen2ForCausalLM", None)
    assert BIAS in caught.value.why and "(64,)" in caught.value.why and "(128,)" in caught.value.why


@pytest.mark.torch
def test_tensors_that_transformers_has_no_use_for_are_told(folder: Path) -> None:
    checkpoints.edit_tensors(
        folder, lambda tensors: tensors.update({"model.extra.weight": tensors[BIAS] + 1})
    )
    told: list[list[str]] = []
    compare_logits.reference(folder, "Qwen2ForCausalLM", None, told.append)
    assert told == [["model.extra.weight"]]


@pytest.mark.torch
def test_a_class_that_transformers_lacks_is_not_compared(folder: Path) -> None:
    assert "has no NobodyForCausalLM" in compare_logits.reference(folder, "NobodyForCausalLM", None).why_not


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        ("mat1 and mat2 shapes cannot be multiplied (1x2 and 3x4)", True),
        ("The size of tensor a (4) must match the size of tensor b (2)", True),
        ("Error(s) in loading: size mismatch for model.norm.weight", True),
        ("Loading a GPTQ quantized model requires optimum", False),
    ],
)
def test_a_reference_that_fails_on_a_shape_is_evidence_against(words: str, refused: bool) -> None:
    error = RuntimeError(words)
    if refused:
        with pytest.raises(CheckpointProblem, match="do not fit"):
            transformers_model.refuse_shapes(error)
    else:
        transformers_model.refuse_shapes(error)


@pytest.mark.torch
def test_an_adapter_in_the_folder_changes_nothing(folder: Path, tmp_path: Path) -> None:
    """Even where a peft is installed: this one tells that it was imported."""
    installed = tmp_path / "site"
    (installed / "peft").mkdir(parents=True)
    (installed / "peft" / "__init__.py").write_text("raise SystemExit('peft was imported')\n")
    (installed / "peft-9.0.dist-info").mkdir()
    (installed / "peft-9.0.dist-info" / "METADATA").write_text("Name: peft\nVersion: 9.0\n")
    checkpoints.write_json(folder / "adapter_config.json", {"peft_type": "LORA", "r": 4})
    (folder / "adapter_model.safetensors").write_bytes(b"")
    script = (
        "import sys; from pathlib import Path; from ggq.checkpoint import transformers_model as it;"
        "it.import_lightly();"
        "print('loaded', type(it.load_model(Path(sys.argv[1]), 'Qwen2ForCausalLM')).__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | transformers_model.ENVIRONMENT | {"PYTHONPATH": str(installed)},
        check=False,
    )
    assert "loaded Qwen2ForCausalLM" in done.stdout, done.stderr[-2000:]


@pytest.mark.tool
def test_a_conversion_without_a_tensor_that_llama_cpp_could_do_without(
    folder: Path, toolchain: Toolchain, tmp_path: Path
) -> None:
    checkpoints.edit_tensors(folder, lambda tensors: tensors.__delitem__(BIAS))
    with pytest.raises((CheckpointProblem, ConversionProblem), match="missing") as caught:
        convert(folder, tmp_path / "out.gguf", session=Session(toolchain))
    assert BIAS in caught.value.why and not (tmp_path / "out.gguf").exists()

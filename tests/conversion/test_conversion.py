"""`convert` on real checkpoints: what it writes, what it leaves alone, what it refuses."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from architecture_cases import SCALE_1_8, SMALL, Case
from architectures import make
from click.testing import CliRunner
from hubserver import HubServer

from ggq.checkpoint import checkpoint
from ggq.cli.main import cli
from ggq.conversion import SourceInfo, convert, resolve_outtype, verify
from ggq.errors import CheckpointProblem, ConversionProblem, OutputProblem, UsageProblem
from ggq.gguf import file as gguf_file
from ggq.llamacpp.toolchain import Toolchain
from ggq.session import Session
from ggq.system import files, hardware

pytestmark = pytest.mark.tool


@pytest.fixture
def model(example: Path, tmp_path: Path) -> Path:
    """A copy of the embedded model that a test may spoil."""
    return Path(shutil.copytree(example, tmp_path / "tiny"))


def change(file: Path, **keys: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


def test_a_conversion_and_what_it_says(example: Path, toolchain: Toolchain, tmp_path: Path) -> None:
    before = {file.name: files.sha256_file(file) for file in example.iterdir()}
    written: list[Path] = []
    made = convert(
        example,
        tmp_path / "tiny.gguf",
        source=SourceInfo("org/tiny", "0" * 40, "mit"),
        on_written=written.append,
        session=Session(toolchain),
    )
    read = gguf_file.read(made.output)
    assert read.text("general.quantized_by") == "ggq 0.1.0"
    assert str(read.text("general.base_model.0.repo_url")).endswith("/org/tiny")
    assert str(read.text("general.base_model.0.url")).endswith(f"/org/tiny/tree/{'0' * 40}")
    assert read.license is not None
    assert read.name == "Tiny"
    assert (made.file_bytes, made.tensor_count) == (made.output.stat().st_size, len(read.tensors))
    checked = made.verification
    assert checked.logits_cosine is not None and checked.logits_cosine > 0.9999
    assert checked.checkpoint_parameters == checkpoint.read(example).parameter_count
    assert checked.tokenizer_strings == checked.tokenizer_compared and not checked.warnings
    assert [path.name for path in written] == ["tiny.gguf"]
    assert {file.name: files.sha256_file(file) for file in example.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]


def test_a_model_too_large_for_memory_is_checked_without_running(
    example: Path, toolchain: Toolchain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "available_ram_bytes", lambda: 1_000_000)
    made = convert(example, tmp_path / "out.gguf", session=Session(toolchain))
    assert made.verification.logits_cosine is None
    assert "1.00 MB are free" in made.verification.why_not
    assert made.verification.tokenizer_strings > 300
    assert made.peak_memory_bytes is None or made.peak_memory_bytes < 900_000_000


def test_an_output_that_exists_is_kept(example: Path, toolchain: Toolchain, tmp_path: Path) -> None:
    output = tmp_path / "mine.gguf"
    output.write_text("mine")
    with pytest.raises(OutputProblem, match="exists"):
        convert(example, output, session=Session(toolchain))
    assert output.read_text() == "mine"
    convert(example, output, force=True, verify="off", session=Session(toolchain))
    assert gguf_file.read(output).architecture == "llama"


def test_verify_finds_a_model_that_is_not_the_same(model: Path, toolchain: Toolchain, tmp_path: Path) -> None:
    made = convert(model, tmp_path / "base.gguf", verify="off", session=Session(toolchain))
    assert made.verification.level == "off" and made.verification.logits_cosine is None
    full = verify(made, "full", session=Session(toolchain))
    assert full.level == "full" and full.logits_cosine is not None
    # The same weights under another rotary base are another model.
    rope = {"rope_type": "default", "rope_theta": 1000.0}
    change(model / "config.json", rope_parameters=rope, rope_theta=1000.0)
    with pytest.raises(ConversionProblem, match="does not compute"):
        verify(made, session=Session(toolchain))


def test_eight_bits_are_asked_for_less(example: Path, toolchain: Toolchain, tmp_path: Path) -> None:
    made = convert(example, tmp_path / "q8.gguf", outtype="q8_0", session=Session(toolchain))
    assert "Q8_0" in gguf_file.read(made.output).types
    assert made.verification.logits_cosine is not None and made.verification.logits_cosine > 0.99


@pytest.mark.parametrize(
    ("dtype", "said", "outtype"),
    [
        ("BF16", None, "bf16"),
        ("F16", None, "f16"),
        ("F32", "bfloat16", "f32"),
        ("I32", "float16", "f16"),
        ("I32", None, "bf16"),
    ],
)
def test_auto_keeps_the_precision(example: Path, dtype: str, said: str | None, outtype: str) -> None:
    given = checkpoint.read(example)
    tensors = tuple(dataclasses.replace(tensor, dtype=dtype) for tensor in given.tensors)
    given = dataclasses.replace(given, tensors=tensors, config={"dtype": said})
    assert resolve_outtype(given, "auto") == outtype
    assert resolve_outtype(given, "Q8_0") == "q8_0"
    with pytest.raises(UsageProblem):
        resolve_outtype(given, "q4_k_m")


def test_nothing_of_a_checkpoint_is_run(model: Path, toolchain: Toolchain, tmp_path: Path) -> None:
    """A model with code of its own: under its real architecture it converts, and its code stays unread."""
    trap = f"open({str(tmp_path / 'ran')!r}, 'w')\n"
    for name in ("modeling_own.py", "tokenization_own.py", "torch.py", "transformers.py"):
        (model / name).write_text(trap)
    code = {"AutoConfig": "modeling_own.Config", "AutoModelForCausalLM": "modeling_own.Model"}
    change(model / "config.json", auto_map=code)
    change(model / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_own.Tokenizer", None]})
    made = convert(model, tmp_path / "out.gguf", session=Session(toolchain))
    assert made.verification.logits_cosine is not None
    assert not (tmp_path / "ran").exists()


def test_an_unknown_architecture_has_a_nearest_one(model: Path, toolchain: Toolchain, tmp_path: Path) -> None:
    change(model / "config.json", architectures=["LlamaForCasualLM"], model_type="lama")
    with pytest.raises(CheckpointProblem, match="LlamaForCasualLM") as caught:
        convert(model, tmp_path / "out.gguf", session=Session(toolchain))
    assert "the nearest is LlamaForCausalLM" in caught.value.why
    assert not (tmp_path / "out.gguf").exists()


def test_a_text_model_has_no_projector(example: Path, toolchain: Toolchain, tmp_path: Path) -> None:
    with pytest.raises(CheckpointProblem, match="no multimodal projector"):
        convert(example, tmp_path / "mmproj.gguf", mmproj=True, session=Session(toolchain))


def test_a_name_that_llama_cpp_reads_as_phi3(model: Path, toolchain: Toolchain, tmp_path: Path) -> None:
    """llama.cpp does not load a file of that name without Phi-3's tokens."""
    named = model.rename(tmp_path / "my-phi3-copy")
    made = convert(named, tmp_path / "out.gguf", session=Session(toolchain))
    name = gguf_file.read(made.output).name
    assert name is not None and "phi3" not in name.lower() and "phi-3" not in name.lower()


def test_an_unknown_tokenizer_is_refused(toolchain: Toolchain, tmp_path: Path) -> None:
    folder = tmp_path / "gpt2"
    case = Case("", "GPT2LMHeadModel", "GPT2Config", "gpt2", {"n_embd": 64, "n_layer": 1, "n_head": 2})
    make(case, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    split = {"type": "Split", "pattern": {"Regex": r"\w+|\W+"}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, level]}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    change(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    with pytest.raises(CheckpointProblem, match="not one that"):
        convert(folder, tmp_path / "out.gguf", session=Session(toolchain))


def test_a_model_that_sees_has_a_text_part_and_a_projector(toolchain: Toolchain, tmp_path: Path) -> None:
    folder = tmp_path / "seeing"
    vision = {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 56, "patch_size": 14, "model_type": "siglip_vision_model", "vision_use_head": False,
    }  # fmt: skip
    text = {**SMALL, **SCALE_1_8, "sliding_window": 16, "vocab_size": 32768, "model_type": "gemma3_text"}
    settings = {
        "text_config": text, "vision_config": vision, "mm_tokens_per_image": 4, "boi_token_index": 10,
        "eoi_token_index": 11, "image_token_index": 12,
    }  # fmt: skip
    model = "Gemma3ForConditionalGeneration"
    make(Case("", model, "Gemma3Config", "gemma", settings), folder)
    processor = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "image_seq_length": 4}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    whole = convert(folder, tmp_path / "text.gguf", session=Session(toolchain))
    assert whole.verification.logits_cosine is not None and whole.verification.logits_cosine > 0.9999
    # transformers 5 saves the encoder under shorter names than the repositories (and the converter) have.
    with pytest.raises(CheckpointProblem, match="a tensor that"):
        convert(folder, tmp_path / "mmproj.gguf", mmproj=True, session=Session(toolchain))
    rename_tensors(folder / "model.safetensors", "vision_tower.", "vision_tower.vision_model.")
    convert(folder, tmp_path / "mmproj.gguf", mmproj=True, session=Session(toolchain))
    assert gguf_file.read(tmp_path / "mmproj.gguf").architecture == "clip"


def rename_tensors(file: Path, old: str, new: str) -> None:
    from safetensors.torch import load_file, save_file

    tensors = {name.replace(old, new): tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.hub
def test_from_the_hub(hub: HubServer, example: Path, toolchain: Toolchain, tmp_path: Path) -> None:
    content = {file.name: file.read_bytes() for file in example.iterdir()}
    repo = hub.add_repo("org/tiny-model", content)
    output = tmp_path / "out.gguf"
    done = CliRunner().invoke(cli, ["convert", "org/tiny-model", "-o", str(output), "--verify", "off"])
    assert done.exit_code == 0, done.output
    read = gguf_file.read(output)
    assert str(read.text("general.base_model.0.url")).endswith(f"/org/tiny-model/tree/{repo.refs['main']}")
    assert read.name == "Tiny Model"


def test_a_dry_run_writes_nothing(example: Path, toolchain: Toolchain, tmp_path: Path) -> None:
    output = tmp_path / "out.gguf"
    done = CliRunner().invoke(cli, ["convert", str(example), "-o", str(output), "--dry-run", "--json"])
    assert done.exit_code == 0, done.output
    plan = json.loads(done.stdout)
    assert plan["output"] == str(output) and plan["exact"] and plan["file_bytes"] > 1_000_000
    assert not list(tmp_path.iterdir())

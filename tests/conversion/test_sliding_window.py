"""A model with a sliding window is compared where the window has an effect."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import checkpoints
import numpy as np
import pytest

from ggq.checkpoint import transformers_model
from ggq.conversion import compare_regimes, convert
from ggq.conversion import sliding_window as windows
from ggq.conversion.compare_logits import Reference
from ggq.conversion.verification import Findings, Verification, verdict
from ggq.errors import ConversionProblem
from ggq.gguf import file as gguf_file
from ggq.llamacpp.inference import LoadedGguf
from ggq.llamacpp.toolchain import Toolchain
from ggq.session import Session

GOOD = {"positions": 32, "cosine": 1.0, "lowest_cosine": 1.0, "top1_agreement": 1.0}
WINDOW = {**GOOD, "window": 128, "tried": 8, "written": 128}
TOKENS = list(range(5, 37))
tool = pytest.mark.tool


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, toolchain: Toolchain) -> tuple[Path, Path, Verification]:
    """A checkpoint with a window longer than the prompt in three of four layers, its GGUF, and what a
    conversion says of them."""
    folder = tmp_path_factory.mktemp("window")
    tokenizer = checkpoints.tokenizer()
    checkpoints.model(
        folder, "Cohere2", vocab_size=tokenizer.get_vocab_size(), num_hidden_layers=4, sliding_window=128,
        pad_token_id=0,
    )  # fmt: skip
    checkpoints.save_tokenizer(folder, tokenizer)
    gguf = folder / "made.gguf"
    return folder, gguf, convert(folder, gguf, session=Session(toolchain)).verification


def _found(folder: Path, gguf: Path, toolchain: Toolchain, layers: list[str] | None = None) -> dict[str, Any]:
    """What the check finds of a GGUF. ``layers``: the checkpoint's kinds of layers from now on."""
    model = transformers_model.load_model(folder, "Cohere2ForCausalLM")
    plain = transformers_model.logits(model, TOKENS)
    if layers:
        checkpoints.edit(folder / "config.json", layer_types=layers)
        model = transformers_model.load_model(folder, "Cohere2ForCausalLM")
    window = windows.reference(model, TOKENS, plain)
    assert model.config.sliding_window == 128  # as it was
    with LoadedGguf(toolchain, gguf, threads=1) as loaded:
        computed = loaded.logits(TOKENS)
    reference = Reference(plain, TOKENS, window=window)
    regimes = compare_regimes.others(
        reference, computed, gguf_file.read(gguf), toolchain, 1, exact_cache=True
    )
    return dict(regimes)["window"]


@tool
def test_a_window_that_the_prompt_does_not_reach(made: tuple[Path, Path, Verification]) -> None:
    found = made[2]
    assert found.window == 128
    assert found.window_cosine is not None
    assert found.window_cosine > 0.99999
    assert not found.window_lost
    assert not found.warnings


@tool
def test_a_window_of_another_size_is_refused(
    made: tuple[Path, Path, Verification], tmp_path: Path, toolchain: Toolchain
) -> None:
    folder, gguf, _ = made
    other = shutil.copyfile(gguf, tmp_path / "other.gguf")
    end = gguf_file.read(other).entry_spans["cohere2.attention.sliding_window"][1]
    with other.open("r+b") as file:
        file.seek(end - 4)
        file.write(struct.pack("<I", 127))
    found = _found(folder, other, toolchain)
    assert found["cosine"] > 0.99999  # the prompt does not see it
    with pytest.raises(ConversionProblem, match="sliding window") as caught:
        verdict("sampled", "f32", _findings(found))
    assert "128" in caught.value.why
    assert "127" in caught.value.why


@tool
def test_a_window_in_other_layers_is_told(
    made: tuple[Path, Path, Verification], tmp_path: Path, toolchain: Toolchain
) -> None:
    folder = shutil.copytree(made[0], tmp_path / "model")
    layers = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    result = verdict("sampled", "f32", _findings(_found(folder, made[1], toolchain, layers)))
    assert "longer than the window" in result.warnings[0]


def test_a_window_within_the_prompt_is_compared_as_it_is() -> None:
    logits = np.random.default_rng(0).normal(size=(32, 50))
    other = logits.copy()
    other[20:] *= -1
    window = windows.Window(16, 16, logits)
    assert windows.compare(window, logits, logits)["positions"] == 16
    assert windows.compare(window, other, other)["cosine"] == pytest.approx(-0.5)


def test_what_has_a_window() -> None:
    for settings, expected in (
        ({}, None),
        ({"sliding_window": None}, None),
        ({"sliding_window": 64}, 64),
        ({"sliding_window": 256}, None),  # no shorter than the context
        ({"sliding_window": 64, "use_sliding_window": False}, None),
        ({"sliding_window": 64, "layer_types": ["full_attention"]}, None),
        ({"sliding_window": 64, "layer_types": ["full_attention", "sliding_attention"]}, 64),
    ):
        assert windows.size(SimpleNamespace(max_position_embeddings=256, **settings)) == expected


def test_a_window_that_llama_cpp_ignores_and_one_that_was_not_reached() -> None:
    logits = np.ones((32, 50))
    found = {"written": 128, **windows.compare(windows.Window(128, 8, logits), logits, logits)}
    lost = verdict("sampled", "f32", _findings(found))
    assert (lost.window, lost.window_cosine, lost.window_lost) == (128, None, True)
    unseen = windows.compare(windows.Window(128, 8, why_not="it fails"), logits, logits)
    told = verdict("sampled", "f32", _findings({"written": 128, **unseen}))
    assert "was not reached: it fails" in told.warnings[0]
    assert verdict("sampled", "f32", _findings(WINDOW)).window_cosine == 1.0


def _findings(window: Mapping[str, Any]) -> Findings:
    return Findings(1, 1, None, (), {}, GOOD, window=window)

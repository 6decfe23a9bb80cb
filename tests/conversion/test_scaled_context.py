"""A model whose context is scaled is compared beyond its original context too."""

from __future__ import annotations

import copy
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import checkpoints
import numpy as np
import pytest

from ggq.checkpoint import transformers_model
from ggq.conversion import compare_regimes, convert, longrope, scaled_context
from ggq.conversion.compare_logits import Reference
from ggq.conversion.verification import Findings, verdict
from ggq.errors import ConversionProblem
from ggq.gguf import file as gguf_file
from ggq.llamacpp.inference import LoadedGguf
from ggq.llamacpp.toolchain import Toolchain
from ggq.session import Session

YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 256,
}
LLAMA3 = {
    **YARN,
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + 0.02 * i for i in range(32)],
    "long_factor": [1.5 + 0.9 * i for i in range(32)],
    "original_max_position_embeddings": 64,
}
GOOD = {"positions": 32, "cosine": 1.0, "lowest_cosine": 1.0, "top1_agreement": 1.0}
BEYOND = {**GOOD, "original": 256, "kind": "yarn", "turned": 4}
TOKENS = list(range(5, 37))

tool = pytest.mark.tool


def _checkpoint(folder: Path, rope: Mapping[str, Any]) -> Path:
    return checkpoints.llama(folder, rope_parameters=dict(rope), max_position_embeddings=2048)


@pytest.fixture(scope="module")
def yarn(tmp_path_factory: pytest.TempPathFactory, toolchain: Toolchain) -> Path:
    """A checkpoint, and beside it its GGUF."""
    folder = _checkpoint(tmp_path_factory.mktemp("yarn"), YARN)
    convert(folder, folder / "made.gguf", verify="off", session=Session(toolchain))
    return folder


@pytest.fixture(scope="module")
def llama3(tmp_path_factory: pytest.TempPathFactory, toolchain: Toolchain) -> Path:
    folder = _checkpoint(tmp_path_factory.mktemp("llama3"), LLAMA3)
    convert(folder, folder / "made.gguf", verify="off", session=Session(toolchain))
    return folder


def _beyond(folder: Path, gguf: Path, toolchain: Toolchain) -> dict[str, Any]:
    """What the check finds of a GGUF beside the checkpoint of ``folder``."""
    model = transformers_model.load_model(folder, "LlamaForCausalLM")
    how = scaled_context.scaled(model.config)
    assert how is not None
    reference = Reference(None, TOKENS, None, scaled_context.reference(model, TOKENS, how))
    with LoadedGguf(toolchain, gguf, threads=1) as loaded:
        return compare_regimes.beyond(reference, loaded, exact_cache=True)


def _put(gguf: Path, offset: int, value: bytes) -> None:
    with gguf.open("r+b") as file:
        file.seek(offset)
        file.write(value)


def _set(key: str, kind: str, value: float) -> Callable[[Path], None]:
    """A change of a number in a GGUF's header."""

    def change(gguf: Path) -> None:
        end = gguf_file.read(gguf).entry_spans[f"llama.{key}"][1]
        _put(gguf, end - 4, struct.pack(f"<{kind}", value))

    return change


def _other_factor(gguf: Path) -> None:
    """The last of Llama 3's factors, which is of the slowest dimensions."""
    table = next(it for it in gguf_file.read(gguf).tensors if it.name == "rope_freqs.weight")
    _put(gguf, table.offset_bytes + table.data_bytes - 4, struct.pack("<f", 7.0))


@tool
def test_a_conversion_is_compared_beyond_its_original_context(tmp_path: Path, toolchain: Toolchain) -> None:
    folder = _checkpoint(tmp_path / "model", LINEAR)
    found = convert(folder, tmp_path / "made.gguf", session=Session(toolchain)).verification
    assert found.original_context == 512
    assert found.beyond_cosine is not None
    assert found.beyond_cosine > 0.99999
    assert (found.rotations, found.warnings) == (4, ())  # queries and keys of two layers


@tool
@pytest.mark.parametrize("kind", ["yarn", "llama3"])
def test_the_same_model_is_the_same_far_away(
    kind: str, request: pytest.FixtureRequest, toolchain: Toolchain
) -> None:
    folder = request.getfixturevalue(kind)
    found = _beyond(folder, folder / "made.gguf", toolchain)
    assert found["cosine"] > 0.99999
    assert (found["turned"], found["original"]) == (4, 256)
    assert scaled_context.remarks(found) == []


@tool
@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("yarn", _set("rope.scaling.factor", "f", 7.9)),
        ("yarn", _set("rope.scaling.original_context_length", "I", 2048)),
        ("yarn", _set("rope.freq_base", "f", 10100.0)),
        ("llama3", _set("rope.freq_base", "f", 10100.0)),
        ("llama3", _other_factor),
    ],
)
def test_other_rotary_frequencies_are_refused(
    kind: str,
    change: Callable[[Path], None],
    tmp_path: Path,
    request: pytest.FixtureRequest,
    toolchain: Toolchain,
) -> None:
    folder, gguf = request.getfixturevalue(kind), tmp_path / "other.gguf"
    shutil.copyfile(folder / "made.gguf", gguf)
    change(gguf)
    with pytest.raises(ConversionProblem, match="positions are not"):
        verdict("sampled", "f32", _findings(_beyond(folder, gguf, toolchain)))


@tool
def test_settings_that_llama_cpp_does_not_have(yarn: Path, tmp_path: Path, toolchain: Toolchain) -> None:
    """One that is known to be missing is a warning in words, another one a refusal."""

    def found(**settings: Any) -> dict[str, Any]:
        folder = tmp_path / "other"
        shutil.copytree(yarn, folder, dirs_exist_ok=True)
        checkpoints.edit(folder / "config.json", rope_parameters={**YARN, **settings})
        return _beyond(folder, yarn / "made.gguf", toolchain)

    for settings, words in (
        ({"beta_fast": 16.0}, ["--yarn-beta-fast"]),
        ({"truncate": False}, ["rounds the range"]),
        ({"truncate": False, "beta_slow": 2.0}, ["rounds the range", "--yarn-beta-slow"]),
    ):
        result = verdict("sampled", "f32", _findings(found(**settings)))
        assert result.rotations == 0
        assert all(word in result.warnings[0] for word in words)
    with pytest.raises(ConversionProblem, match="positions are not") as caught:
        verdict("sampled", "f32", _findings(found(attention_factor=1.0)))
    assert "1.2079 (transformers: 1.0000)" in caught.value.why


@tool
def test_factors_that_follow_the_length_are_a_warning(
    yarn: Path, tmp_path: Path, toolchain: Toolchain
) -> None:
    folder = _checkpoint(tmp_path, {**LINEAR, "rope_type": "dynamic"})
    found = _beyond(folder, yarn / "made.gguf", toolchain)
    result = verdict("sampled", "f32", _findings(found))
    assert "beyond 2048 tokens transformers stretches" in result.warnings[0]
    assert (result.original_context, result.beyond_cosine, result.rotations) == (2048, None, 0)


@pytest.mark.torch
def test_transformers_takes_the_long_factors_there(tmp_path: Path) -> None:
    checkpoints.model(
        tmp_path, "Phi3", rope_parameters=dict(LONG), vocab_size=600, pad_token_id=0, sliding_window=None,
        max_position_embeddings=1024, original_max_position_embeddings=64,
    )  # fmt: skip
    model = transformers_model.load_model(tmp_path, "Phi3ForCausalLM")
    assert longrope.original_context(model) == 64
    short, how = transformers_model.logits(model, TOKENS), scaled_context.scaled(model.config)
    assert how == scaled_context.Scaled("longrope", 64)
    found = scaled_context.reference(model, TOKENS, how)
    frequencies = 10000.0 ** (-np.arange(32) / 32) / np.array(LONG["long_factor"])
    turned = found.layers[1] / np.abs(found.layers[1])
    assert np.allclose(turned, np.exp(1j * np.outer([*range(16), 96], frequencies)), atol=1e-4)
    assert np.array_equal(short, transformers_model.logits(model, TOKENS))  # and is as it was


@pytest.mark.torch
def test_only_a_scaled_context_is_compared_far_away(example: Path) -> None:
    assert longrope.original_context(transformers_model.load_model(example, "LlamaForCausalLM")) is None
    assert longrope.overrides(example, None, beyond=True) == {}
    plain = {"rope_type": "default", "rope_theta": 10000.0}
    for rope, expected in (
        (None, None),
        (plain, None),
        (LINEAR, scaled_context.Scaled("linear", 512)),
        (YARN, scaled_context.Scaled("yarn", 256)),
        ({"full_attention": LINEAR, "sliding_attention": plain}, scaled_context.Scaled("linear", 512)),
    ):
        config = SimpleNamespace(rope_parameters=copy.deepcopy(rope), max_position_embeddings=2048)
        assert scaled_context.scaled(config) == expected


def _findings(beyond: Mapping[str, Any]) -> Findings:
    return Findings(1, 1, None, (), {}, GOOD, beyond=beyond)


def test_other_logits_beyond_are_refused_and_what_was_not_seen_is_told() -> None:
    with pytest.raises(ConversionProblem, match="does not compute") as caught:
        verdict("sampled", "f32", _findings({**BEYOND, "cosine": 0.9}))
    assert "beyond its original context" in caught.value.why
    with pytest.raises(ConversionProblem, match="not numbers"):
        verdict("sampled", "f32", _findings({"original": 256, "kind": "yarn", "not_finite": "the GGUF's"}))
    good = verdict("sampled", "f32", _findings(BEYOND))
    assert (good.beyond_cosine, good.rotations, good.warnings) == (1.0, 4, ())
    how = scaled_context.Scaled("yarn", 256)
    for found in (
        {"original": 256, "kind": "yarn", "why_not": "transformers does not run it there"},
        {"original": 256, "kind": "yarn", **scaled_context.compare(scaled_context.Far(how, 16, 384), [])},
    ):
        told = verdict("sampled", "f32", _findings(found))
        assert "not compared" in told.warnings[0]
        assert (told.beyond_cosine, told.rotations) == (None, 0)

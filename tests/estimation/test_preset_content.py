"""What presets make of a model whose rows do not divide by their blocks: by its tensors, not by its name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from checkpoints import llama

from ggq.estimation import preset_content
from ggq.estimation.estimator import PresetSize
from ggq.llamacpp.toolchain import Toolchain
from ggq.operations.plan import plan
from ggq.operations.plan_settings import PlanSettings
from ggq.operations.plan_types import Plan
from ggq.operations.recommend import recommend
from ggq.operations.recommend_types import Limits
from ggq.presets import catalogue as presets
from ggq.session import Session

QUIET = PlanSettings(speed_budget_s=0, threads=1, contexts=(64,))
NAMES = ("Q2_K", "Q3_K_S", "Q4_K_S", "Q4_0", "Q8_0")


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Widths of 192 and 320: 32 divides them, 256 does not."""
    folder = tmp_path_factory.mktemp("narrow") / "narrow"
    folder.mkdir()
    return llama(folder, hidden_size=192, intermediate_size=320, num_attention_heads=3, num_key_value_heads=1)


def by_name(found: Plan) -> dict[str, PresetSize]:
    return {it.preset: it.size for it in found.presets}


@pytest.mark.tool
def test_a_plan_tells_what_fell_back_and_whose_loss_it_has(narrow: Path, toolchain: Toolchain) -> None:
    found = plan(str(narrow), NAMES, QUIET, session=Session(toolchain=toolchain))
    sizes = by_name(found)
    assert sizes["Q2_K"].mostly_fell_back and sizes["Q2_K"].main_type == "Q4_0"
    assert sizes["Q4_K_S"].mostly_fell_back and sizes["Q4_K_S"].main_type == "Q5_0"
    assert not sizes["Q8_0"].mostly_fell_back
    published = {it.preset: it for it in found.presets}
    assert published["Q2_K"].published == published["Q3_K_S"].published == published["Q4_0"].published
    assert published["Q2_K"].published_preset == "Q4_0" and published["Q4_K_S"].published_preset == "Q5_0"
    assert published["Q8_0"].published_preset == "Q8_0"
    # Files of the same bytes are named as such, and no others are.
    for names in found.alike:
        assert len({sizes[name].file_bytes for name in names}) == 1
    same = {a for a in sizes for b in sizes if a != b and sizes[a].content == sizes[b].content}
    assert same == {name for names in found.alike for name in names}


@pytest.mark.tool
def test_a_recommendation_says_it_too(narrow: Path, toolchain: Toolchain) -> None:
    found = recommend(str(narrow), ["Q4_K_S"], Limits(), QUIET, session=Session(toolchain=toolchain))
    said = " ".join(found.reasons)
    assert "fall back" in said and "mostly Q5_0" in said and "Q5_0 of Llama-3-8B" in said


def test_no_loss_of_what_is_no_quantization() -> None:
    catalogue = presets.load()
    (preset,) = catalogue.resolve(["Q4_K_M"])
    size = PresetSize(1000, 16.0, 0, 0, False, 0.0, "", "a")
    assert preset_content.expected(preset, size, catalogue, 10**9).published is None
    fell = replace(size, fallback_count=9, quantized_count=10, main_type="IQ4_NL")
    assert preset_content.expected(preset, fell, catalogue, 10**9).published is None  # nobody published it
    own = replace(size, quantized_count=10)
    assert preset_content.expected(preset, own, catalogue, 10**9).preset == "Q4_K_M"


def test_presets_that_come_out_alike() -> None:
    size = PresetSize(1000, 4.5, 0, 9, False, 0.0, "Q4_0", "a")
    sizes = {"X": size, "Y": replace(size, content="b"), "Z": size}
    assert preset_content.alike(sizes) == (("X", "Z"),)

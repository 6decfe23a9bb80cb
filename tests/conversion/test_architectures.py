"""The architecture matrix: what `ggq convert` makes of each, and llama-quantize of that."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from architectures import CASES, Case, Row, run_all
from tiers import EVERYTHING

from ggq.conversion import LEAST_COSINE
from ggq.llamacpp.toolchain import Toolchain

pytestmark = pytest.mark.tool

TESTED = [case for case in CASES if case.tested or EVERYTHING]
# Random weights have no redundancy: a layer's error is the next one's input. Where experts are chosen by a
# narrow margin, another machine's rounding takes another expert. A wrong tensor leaves a cosine near zero.
LEAST_QUANTIZED = {"Q8_0": 0.95, "Q4_K_M": 0.6}


@pytest.fixture(scope="module")
def rows(toolchain: Toolchain) -> Mapping[str, Row]:
    """Every tested case, by its name; made together, since two go at once."""
    return {row.case.name: row for row in run_all(TESTED, toolchain)}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", TESTED, ids=lambda case: case.name)
def test_converted_right_or_refused(rows: Mapping[str, Row], case: Case) -> None:
    row = rows[case.name]
    if case.refused:
        assert case.refused in row.outcome
        return
    assert row.verification is not None, row.outcome
    found = row.verification
    if not case.computed:
        assert found.why_not
        return
    is_encoder = case.model in ("BertModel", "XLMRobertaModel", "ModernBertModel")
    cosine = found.vectors_cosine if is_encoder else found.logits_cosine
    assert cosine is not None, found.why_not
    assert cosine >= LEAST_COSINE["bf16"]
    assert found.tokenizer_strings > 300
    assert found.checkpoint_parameters is not None
    assert case.warned in " ".join(row.remarks)
    for preset, least in LEAST_QUANTIZED.items() if case.quantized else ():
        assert row.quantized[preset] >= least, preset


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("GPT2", {"n_ctx": 256}),
        ("GPTNeoX", {"rotary_pct": 0.25}),
        ("Cohere2", {"rotary_pct": 1.0}),
        ("Mamba", {"pad_vocab_size_multiple": 1}),
        ("Llama", {}),
    ],
)
def test_what_was_missing_is_completed(
    rows: Mapping[str, Row], name: str, keys: Mapping[str, object]
) -> None:
    assert rows[name].completed == keys


def test_what_was_mended_is_said(rows: Mapping[str, Row]) -> None:
    assert any("splits as qwen2 does" in remark for remark in rows["Qwen2"].remarks)
    assert any(
        "made of its tokenizer.json" in remark for remark in rows["Llama, tokenizer.json only"].remarks
    )

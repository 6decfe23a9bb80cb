"""The architecture matrix: what `ggq convert` makes of each, and llama-quantize of that."""

from __future__ import annotations

import pytest
from architectures import CASES, Case, run
from tiers import EVERYTHING

from ggq.conversion import LEAST_COSINE
from ggq.llamacpp.toolchain import Toolchain

pytestmark = pytest.mark.tool

TESTED = [case for case in CASES if case.tested or EVERYTHING]
# Random weights have no redundancy: a layer's error is the next one's input. Where experts are chosen by a
# narrow margin, another machine's rounding takes another expert. A wrong tensor leaves a cosine near zero.
LEAST_QUANTIZED = {"Q8_0": 0.95, "Q4_K_M": 0.6}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", TESTED, ids=lambda case: case.name)
def test_converted_right_or_refused(toolchain: Toolchain, case: Case) -> None:
    row = run(case, toolchain)
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
    assert row.completed == case.completed
    for preset, least in LEAST_QUANTIZED.items() if case.quantized else ():
        assert row.quantized[preset] >= least, preset

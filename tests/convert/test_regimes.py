"""A model with two sets of rotary factors is compared with both."""

from __future__ import annotations

from pathlib import Path

import checkpoints
import numpy as np
import pytest

from ggq import transformers_model
from ggq.convert import regimes
from ggq.convert.verification import Findings, judge
from ggq.errors import ConversionProblem

ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + 0.02 * i for i in range(32)],
    "long_factor": [1.5 + 0.9 * i for i in range(32)],
    "original_max_position_embeddings": 64,
}
GOOD = {"positions": 32, "cosine": 1.0, "lowest_cosine": 1.0, "top1_agreement": 1.0}


def test_transformers_is_asked_for_both_sets(tmp_path: Path) -> None:
    special: dict[str, object] = {
        "vocab_size": 600,
        "pad_token_id": 0,
        "sliding_window": None,
        "max_position_embeddings": 1024,
    }
    special["original_max_position_embeddings"] = 64
    checkpoints.model(tmp_path, "Phi3", rope_parameters=dict(ROPE), **special)
    model = transformers_model.load_model(tmp_path, "Phi3ForCausalLM")
    tokens = list(range(5, 37))
    assert regimes.original_context(model) == 64
    short = transformers_model.logits(model, tokens)
    assert not np.allclose(short, regimes.long_logits(model, tokens), atol=1e-3)
    assert np.array_equal(short, transformers_model.logits(model, tokens))  # and is as it was


def test_a_model_with_one_set_is_compared_once(example: Path) -> None:
    assert regimes.original_context(transformers_model.load_model(example, "LlamaForCausalLM")) is None
    assert regimes.overrides(example, None, beyond=True) == {}


def test_wrong_factors_for_long_texts_are_refused() -> None:
    found = Findings(1, 1, None, (), {}, GOOD, beyond={**GOOD, "cosine": 0.9})
    with pytest.raises(ConversionProblem, match="does not compute") as caught:
        judge("sampled", "f32", found)
    assert "beyond its original context" in caught.value.why
    assert judge("sampled", "f32", Findings(1, 1, None, (), {}, GOOD, beyond=GOOD)).beyond_cosine == 1.0

"""The tools' words: captured from the pinned build, and refused where they are not what they were.

Each file in captured/ begins with the command that printed the rest.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from ggq.errors import ToolchainProblem
from ggq.llamacpp import tool_output
from ggq.llamacpp.tool_output import Fallback, PlannedTensor

CAPTURED = Path(__file__).with_name("captured")


def lines(name: str) -> list[str]:
    return (CAPTURED / f"{name}.txt").read_text(encoding="utf-8").splitlines()[1:]


# ---- llama-quantize --------------------------------------------------------------------------------------


def test_a_dry_run_names_the_type_of_every_tensor() -> None:
    plan = tool_output.quantize_plan(lines("quantize_dry_run"))
    assert len(plan.tensors) == 12 and not plan.fallbacks and not plan.needs_imatrix
    assert plan.tensors[0] == PlannedTensor("output.weight", (256, 256), "F32", "Q6_K")
    assert plan.tensors[1] == PlannedTensor("output_norm.weight", (256,), "F32", "F32")
    assert Counter(tensor.target_type for tensor in plan.tensors) == {"Q4_K": 6, "Q6_K": 3, "F32": 3}


def test_a_dry_run_names_what_fell_back_and_to_what() -> None:
    plan = tool_output.quantize_plan(lines("quantize_dry_run_fallbacks"))
    assert (len(plan.tensors), len(plan.fallbacks)) == (47, 35)
    assert plan.fallbacks[0] == Fallback("blk.0.attn_k.weight", 64, "Q4_K", "Q5_0")
    assert Fallback("blk.0.ffn_down.weight", 172, "Q4_K", "F16") in plan.fallbacks
    by_name = {tensor.name: tensor for tensor in plan.tensors}
    assert all(by_name[fallback.name].target_type == fallback.target_type for fallback in plan.fallbacks)


def test_a_dry_run_tells_that_an_imatrix_is_needed() -> None:
    assert tool_output.quantize_plan(lines("quantize_dry_run_imatrix")).needs_imatrix


def test_a_run_tells_how_far_it_is() -> None:
    progress = [found for line in lines("quantize") if (found := tool_output.quantize_progress(line))]
    assert progress == [(index, 12) for index in range(1, 13)]


def test_a_run_names_the_same_types_as_the_dry_run() -> None:
    done, planned = (
        tool_output.quantize_plan(lines("quantize")),
        tool_output.quantize_plan(lines("quantize_dry_run")),
    )
    assert done == planned


@pytest.mark.parametrize("name", ["quantize_dry_run", "quantize_dry_run_fallbacks"])
def test_a_dry_run_that_lacks_any_one_tensor_is_refused(name: str) -> None:
    whole = lines(name)
    tensors = [index for index, line in enumerate(whole) if tool_output.quantize_progress(line)]
    for index in tensors:
        with pytest.raises(ToolchainProblem, match="something that ggq does not know"):
            tool_output.quantize_plan(whole[:index] + whole[index + 1 :])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (r"type = ", "kind: "),
        (r"MiB ->", "MiB =>"),
        (r"\[ *(\d+)/ *(\d+)\] ", r"\1 of \2: "),
        (r"falling back to", "becoming"),
    ],
)
def test_a_dry_run_in_other_words_is_refused(old: str, new: str) -> None:
    changed = [re.sub(old, new, line) for line in lines("quantize_dry_run_fallbacks")]
    assert changed != lines("quantize_dry_run_fallbacks")
    with pytest.raises(ToolchainProblem, match="something that ggq does not know") as caught:
        tool_output.quantize_plan(changed)
    assert "ggq doctor" in caught.value.next_step


@pytest.mark.parametrize("text", [[], ["main: unknown model architecture"], ["\0\1"]])
def test_no_dry_run_at_all_is_refused(text: list[str]) -> None:
    with pytest.raises(ToolchainProblem):
        tool_output.quantize_plan(text)


# ---- the converter ---------------------------------------------------------------------------------------


def test_the_converter_tells_how_far_it_is() -> None:
    progress = [found for line in lines("converter") if (found := tool_output.converter_progress(line))]
    assert progress[0] == (0, 16.8e6) and progress[-1] == (16.8e6, 16.8e6)
    assert progress == sorted(progress)


@pytest.mark.parametrize(
    ("line", "progress"),
    [
        ("Writing:   5%|▌         | 512k/9.83G [00:00<00:10, 900Mbyte/s]", (512e3, 9.83e9)),
        ("Writing: 100%|██████████| 1.20T/1.20T [09:00<00:00, 2.2Gbyte/s]", (1.2e12, 1.2e12)),
        ("Loading:  50%|█████     | 1/2 [00:00<00:00, 2it/s]", None),
        ("INFO:hf-to-gguf:Model successfully exported to prose.gguf", None),
    ],
)
def test_the_converters_bar(line: str, progress: tuple[float, float] | None) -> None:
    assert tool_output.converter_progress(line) == progress


def test_why_llama_quantize_failed() -> None:
    said = lines("quantize_failed")
    assert "failed to quantize" in tool_output.quantize_reason(said)
    assert tool_output.quantize_reason(["one", "two"]) == "two" and tool_output.quantize_reason([]) == ""

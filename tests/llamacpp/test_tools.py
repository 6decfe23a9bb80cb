"""The real tools, through their wrappers."""

from __future__ import annotations

from pathlib import Path

import pytest

from ggq.errors import ToolFailed
from ggq.llamacpp import tools
from ggq.llamacpp.toolchain import Toolchain
from ggq.setup import selftest

pytestmark = pytest.mark.tool


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    selftest.write_tiny_model(tmp_path / "tiny.gguf")
    return tmp_path / "tiny.gguf"


def test_the_dry_run_says_what_the_run_does(toolchain: Toolchain, tiny: Path, tmp_path: Path) -> None:
    import gguf

    plan = tools.quantize_plan(toolchain, tiny, "Q3_K_M")
    progress: list[tuple[float, float]] = []
    tools.quantize(
        toolchain, tiny, tmp_path / "q.gguf", "Q3_K_M", threads=1,
        on_tensor=lambda done, total: progress.append((done, total)),
    )  # fmt: skip
    made = gguf.GGUFReader(tmp_path / "q.gguf").tensors
    assert {tensor.name: tensor.tensor_type.name for tensor in made} == {
        tensor.name: tensor.target_type for tensor in plan.tensors
    }
    assert progress[-1] == (len(made), len(made))


def test_overrides_reach_the_tool(toolchain: Toolchain, tiny: Path) -> None:
    options = tools.QuantizeOptions(
        tensor_types=("attn_v=q8_0",), output_tensor_type="q4_0", token_embedding_type="q5_0"
    )
    plan = tools.quantize_plan(toolchain, tiny, "Q4_K_M", options)
    types = {tensor.name: tensor.target_type for tensor in plan.tensors}
    assert types["blk.0.attn_v.weight"] == "Q8_0"
    assert (types["output.weight"], types["token_embd.weight"]) == ("Q4_0", "Q5_0")


def test_an_imatrix_that_is_needed_is_asked_for(toolchain: Toolchain, tiny: Path, tmp_path: Path) -> None:
    assert tools.quantize_plan(toolchain, tiny, "IQ2_XXS").needs_imatrix
    with pytest.raises(ToolFailed) as caught:
        tools.quantize(toolchain, tiny, tmp_path / "q.gguf", "IQ2_XXS")
    assert any("imatrix" in line for line in caught.value.tail)


def test_a_file_that_is_no_gguf_fails(toolchain: Toolchain, tmp_path: Path) -> None:
    (tmp_path / "no.gguf").write_bytes(b"GGUF nonsense")
    with pytest.raises(ToolFailed):
        tools.quantize_plan(toolchain, tmp_path / "no.gguf", "Q4_K_M")


@pytest.mark.parametrize("repack", [True, False])
def test_a_forward_pass(toolchain: Toolchain, tiny: Path, repack: bool) -> None:
    tools.forward_pass(toolchain, tiny, repack=repack)

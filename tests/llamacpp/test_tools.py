"""The real tools, through their wrappers."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ggq import process
from ggq.errors import ToolFailed, UsageProblem
from ggq.llamacpp import selftest, tools
from ggq.llamacpp.parse import Perplexity
from ggq.llamacpp.toolchain import Toolchain

pytestmark = pytest.mark.tool


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    selftest.write_tiny_model(tmp_path / "tiny.gguf")
    return tmp_path / "tiny.gguf"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text(Path(tools.__file__).read_text(encoding="utf-8")[:2000])
    return file


def test_no_summary_is_lost_in_fifty_runs(toolchain: Toolchain, base_gguf: Path, text: Path) -> None:
    seen = [tools.perplexity(toolchain, base_gguf, text, context=64, chunks=1, threads=1) for _ in range(50)]
    assert seen == [seen[0]] * 50
    assert isinstance(seen[0], Perplexity) and seen[0].value > 1 and seen[0].standard_error > 0


# A log that is never flushed at exit: what the tools do without ggq's own source in them.
NO_FLUSH = "void _Z16common_log_flushP10common_log(void * log) { (void) log; }"


@pytest.mark.skipif(sys.platform != "linux", reason="shrinks a pipe and preloads a library")
def test_a_slow_reader_gets_the_summary_too(
    toolchain: Toolchain, base_gguf: Path, text: Path, tmp_path: Path
) -> None:
    """The race that loses last lines, made likely by a small pipe and a reader that lags behind.

    Beside it the same runs without the flush, so that this test is known to tell the difference.
    """
    compiler = shutil.which("cc") or shutil.which("gcc") or pytest.skip("there is no C compiler")
    (tmp_path / "no_flush.c").write_text(NO_FLUSH)
    process.run([compiler, "-shared", "-fPIC", "-o", tmp_path / "no_flush.so", tmp_path / "no_flush.c"])
    command = [
        toolchain.tool("llama-perplexity"), "-m", base_gguf, "-f", text, "-c", "64", "--chunks", "1",
        "-t", "1", "-fit", "off", "-ngl", "0", "-lv", "4",
    ]  # fmt: skip
    without = {"LD_PRELOAD": str(tmp_path / "no_flush.so")}
    assert all(summary_arrives(command, {}) for _ in range(10))
    assert not all(summary_arrives(command, without) for _ in range(10))


def summary_arrives(command: list[str | Path], env: dict[str, str]) -> bool:
    """Run with a pipe of 4 KiB that is read late and by drops."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    child = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=writing, env={**os.environ, "OMP_NUM_THREADS": "1", **env}
    )
    os.close(writing)
    time.sleep(0.3)
    words = b""
    while block := os.read(reading, 512):
        words += block
        time.sleep(0.002)
    os.close(reading)
    assert child.wait() == 0
    return b"Final estimate" in words


def test_too_little_text_is_said(toolchain: Toolchain, base_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("def")
    with pytest.raises(UsageProblem, match="too short"):
        tools.perplexity(toolchain, base_gguf, tmp_path / "short.txt")


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


def test_a_completion_begins_with_its_prompt_and_is_the_same_twice(
    toolchain: Toolchain, base_gguf: Path
) -> None:
    texts = {tools.complete(toolchain, base_gguf, "def ", 12, threads=1) for _ in range(2)}
    assert len(texts) == 1 and texts.pop().startswith("def ")


def test_the_converter_knows_the_common_architectures(toolchain: Toolchain) -> None:
    assert {"LlamaForCausalLM", "Qwen3ForCausalLM"} <= set(tools.supported_architectures(toolchain))

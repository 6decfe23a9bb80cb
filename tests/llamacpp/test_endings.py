"""A tool that ends by a signal is told in words: no line of its log."""

from __future__ import annotations

import re
import signal
import struct
from pathlib import Path

import pytest
from builds import put_tools
from click.testing import CliRunner

from ggq.cli.main import cli
from ggq.errors import ToolFailed
from ggq.llamacpp import bench, endings, memory, tools
from ggq.llamacpp import toolchain as toolchains
from ggq.llamacpp.toolchain import Toolchain
from ggq.setup import selftest

ABORT = -signal.SIGABRT
RAW = re.compile(r"GGML_ASSERT|what\(\)|terminate called|llama_model_loader|\bcmn\b")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            [
                "cmn init: threadpool",
                "/build/ggml-cpu/ops.cpp:4132: GGML_ASSERT(eps >= 0.0f) failed",
                "cmn x",
            ],
            "llama.cpp stopped at a check of its own: eps >= 0.0f (ops.cpp:4132).",
        ),
        (
            [r"C:\b\llama.cpp:13: GGML_ASSERT(a.size() > 0 && f(b)) failed"],
            "llama.cpp stopped at a check of its own: a.size() > 0 && f(b) (llama.cpp:13).",
        ),
        (
            [
                "terminate called after throwing an instance of 'std::out_of_range'",
                "  what():  _Map_base::at",
            ],
            "llama.cpp stopped at an error that it does not expect: _Map_base::at.",
        ),
        (
            ["terminate called after throwing an instance of 'int'"],
            "llama.cpp stopped at an error that it does not expect, int.",
        ),
        (
            ["libc++abi: terminating due to uncaught exception of type std::bad_alloc: std::bad_alloc"],
            "llama.cpp stopped at an error that it does not expect, std::bad_alloc: std::bad_alloc.",
        ),
        (
            ["CUDA error: out of memory", "  current device: 0", "/x/ggml-cuda.cu:98: CUDA error"],
            "llama.cpp stopped itself: CUDA error: out of memory (ggml-cuda.cu:98).",
        ),
        (["/x/ggml.c:7: fatal error"], "llama.cpp stopped itself: fatal error (ggml.c:7)."),
        (["free(): invalid pointer"], "llama.cpp spoiled its own memory: free(): invalid pointer."),
        (["load the model"], "It stopped itself, and did not say why."),
        ([], "It stopped itself, and did not say why."),
    ],
)
def test_what_an_aborted_tool_stopped_at(lines: list[str], said: str) -> None:
    assert endings.why(ABORT, lines) == said


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL])
def test_a_crash_is_a_sentence(number: signal.Signals) -> None:
    assert str(endings.why(-number, ["log"])).endswith(".") and "log" not in str(
        endings.why(-number, ["log"])
    )


@pytest.mark.parametrize("returncode", [0, 1, -signal.SIGKILL, -signal.SIGTERM])
def test_other_ends_have_no_such_reason(returncode: int) -> None:
    assert endings.why(returncode, ["/x/ggml.c:7: GGML_ASSERT(x) failed"]) is None


def dying(folder: Path, how: str) -> Toolchain:
    """Tools that print a log and end so."""
    bin_dir = put_tools(folder)
    for name in toolchains.TOOLS:
        (bin_dir / name).write_text(f"#!/bin/sh\necho llama_model_loader: - kv 1\n{how}\n")
    return Toolchain("named", bin_dir, bin_dir, None, None)


@pytest.mark.parametrize(
    ("how", "said", "advice"),
    [
        (
            "echo '/x/a.cpp:1: GGML_ASSERT(n > 0) failed' >&2; kill -ABRT $$",
            "own: n > 0",
            "`ggq inspect FILE`",
        ),
        ("kill -SEGV $$", "memory that is not its own", "`ggq inspect FILE`"),
        ("kill -ILL $$", "instruction", "`ggq setup --portable`"),
    ],
)
def test_every_tool_that_reads_a_model(tmp_path: Path, how: str, said: str, advice: str) -> None:
    found = dying(tmp_path / "bin", how)
    model = tmp_path / "m.gguf"
    model.write_text("")
    load = memory.Load(context_tokens=32)
    for run in (
        lambda: tools.quantize(found, model, tmp_path / "q", "Q4_0"),
        lambda: tools.quantize_plan(found, model, "Q4_0"),
        lambda: tools.bos_token(found, model),
        lambda: bench.run(found, model, bench.BenchOptions(threads=(1,))),
        lambda: memory.breakdown(found, model, load),
    ):
        with pytest.raises(ToolFailed) as caught:
            run()
        assert said in caught.value.why and advice in caught.value.next_step
        assert not RAW.search(str(caught.value))


@pytest.fixture(scope="module")
def senseless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose epsilon is below zero, as llama.cpp finds out when it computes."""
    file = tmp_path_factory.mktemp("senseless") / "model.gguf"
    selftest.write_tiny_model(file)
    raw, right = file.read_bytes(), struct.pack("<f", 1e-5)
    assert raw.count(right) == 1
    file.write_bytes(raw.replace(right, struct.pack("<f", -1.0)))
    return file


@pytest.mark.tool
def test_the_real_tools(toolchain: Toolchain, senseless: Path) -> None:
    with pytest.raises(ToolFailed) as caught:
        tools.forward_pass(toolchain, senseless, repack=True)
    assert caught.value.returncode == ABORT
    assert re.fullmatch(
        r"llama.cpp stopped at a check of its own: eps .*\(\w+\.\w+:\d+\)\.", caught.value.why
    )


@pytest.mark.tool
def test_the_command(toolchain: Toolchain, senseless: Path) -> None:
    done = CliRunner().invoke(cli, ["bench", "speed", str(senseless), "--json"])
    assert done.exit_code == 1
    assert "stopped at a check of its own: eps" in done.output and not RAW.search(done.output)

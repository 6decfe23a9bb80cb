"""llama-bench through its wrapper: its words as it printed them, and the tool itself."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from killing import killing

from ggq.errors import DoesNotFit, GgufProblem, ToolchainProblem, ToolFailed, UsageProblem
from ggq.llamacpp import bench
from ggq.llamacpp.bench import BenchOptions
from ggq.llamacpp.offload import Offload
from ggq.llamacpp.toolchain import Toolchain
from ggq.system import process
from ggq.system.hardware import Device, DeviceKind

CAPTURED = Path(__file__).parent / "captured"
QUICK = BenchOptions(prompt_tokens=(16,), repetitions=2)


def captured(name: str) -> list[str]:
    return (CAPTURED / name).read_text(encoding="utf-8").splitlines()


def ended(returncode: int, stderr: list[str], **more: bool) -> process.Completed:
    return process.Completed(("llama-bench",), returncode, (), tuple(stderr), 1.0, None, **more)


# --- its words -------------------------------------------------------------------------------------------


def test_results_as_it_printed_them() -> None:
    prompt, generation = bench.results(captured("bench.jsonl"))
    assert (prompt.prompt_tokens, prompt.generated_tokens, prompt.depth_tokens) == (64, 0, 0)
    assert (generation.prompt_tokens, generation.generated_tokens) == (0, 16)
    assert prompt.samples_ns == (3614121, 3382138, 3637585)
    assert prompt.samples_tokens_per_s == (17708.3, 18922.9, 17594.1)
    assert (prompt.build_commit, prompt.cpu_name, prompt.backends) == ("0c1e57098", "AMD EPYC", "CPU")
    assert (prompt.model_bytes, prompt.parameter_count, prompt.threads) == (4461568, 2229504, 1)
    assert (prompt.flash_attention, prompt.load_mode, prompt.type_k, prompt.gpu_names) == (
        "auto", "auto", "f16", "",
    )  # fmt: skip


def test_results_on_an_rpc_device() -> None:
    (result,) = bench.results(captured("bench_rpc.jsonl"))
    assert (result.backends, result.gpu_names, result.n_gpu_layers) == ("RPC", "127.0.0.1:50052", 2)
    assert (result.type_k, result.flash_attention, result.load_mode) == ("q8_0", "on", "mmap")
    assert result.depth_tokens == 100


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("samples_ns", []),
        ("samples_ns", [3614121]),
        ("samples_ns", [0, 3382138, 3637585]),
        ("samples_ts", [1.0, 2.0, 3.0]),
        ("samples_ts", "17708.3"),
        ("flash_attn", 7),
        ("n_threads", "1"),
        ("backends", None),
    ],
)
def test_results_of_another_kind_are_refused(key: str, value: object) -> None:
    raw = json.loads(captured("bench.jsonl")[0])
    with pytest.raises(ToolchainProblem, match="does not know"):
        bench.results([json.dumps({**raw, key: value})])


@pytest.mark.parametrize(
    "line", ["[", "{}", "| model | size |", '{"build_commit": "0c1e57098"}', "3", "null"]
)
def test_other_lines_are_refused(line: str) -> None:
    with pytest.raises(ToolchainProblem, match="does not know"):
        bench.results([line])


def test_a_key_that_is_missing_is_refused() -> None:
    raw = json.loads(captured("bench.jsonl")[0])
    del raw["type_k"]
    with pytest.raises(ToolchainProblem, match="type_k"):
        bench.results([json.dumps(raw)])


def test_devices_as_it_lists_them() -> None:
    assert bench.listed_devices(captured("bench_no_devices.txt")) == ()
    assert bench.listed_devices(captured("bench_devices.txt")) == (
        Device("RPC0", "127.0.0.1:50052", DeviceKind.RPC, 24103 << 20, 24103 << 20),
    )
    assert str(bench.listed_devices(captured("bench_devices.txt"))[0]) == "RPC0 (127.0.0.1:50052)"


@pytest.mark.parametrize(
    "lines", [[], ["Available devices:"], ["devices"], ["Available devices:", "  RPC0 with 24 GB"]]
)
def test_other_lists_of_devices_are_refused(lines: list[str]) -> None:
    with pytest.raises(ToolchainProblem, match="list-devices"):
        bench.listed_devices(lines)


def test_a_lost_server_is_named() -> None:
    problem = bench._known_failure(ended(-signal.SIGABRT, captured("bench_rpc_lost.txt")))
    assert isinstance(problem, ToolchainProblem) and "lost half-way" in problem.what
    broken_pipe = replace(ended(-signal.SIGPIPE, []), command=("llama-bench", "--rpc", "127.0.0.1:50052"))
    problem = bench._known_failure(broken_pipe)
    assert isinstance(problem, ToolchainProblem) and "lost half-way" in problem.what
    assert bench._known_failure(ended(-signal.SIGPIPE, [])) is None
    problem = bench._known_failure(ended(-signal.SIGABRT, captured("bench_rpc_unreachable.txt")))
    assert isinstance(problem, ToolchainProblem) and "127.0.0.1:50052 cannot be reached" in problem.what


def test_the_command_line() -> None:
    options = BenchOptions(
        prompt_tokens=(64, 128),
        depths=(0, 100),
        threads=(1, 2),
        offload=Offload(n_gpu_layers=-1, n_cpu_moe=3, tensor_split=(3, 1), rpc=("a:1", "b:2")),
        flash_attention="on",
        load_mode="none",
        warm_up=False,
    )
    assert " ".join(options.arguments()) == (
        "-p 64,128 -n 0 -d 0,100 -t 1,2 -ngl 999 --rpc a:1,b:2 -ncmoe 3 -ts 3/1 -ctk f16 -ctv f16 -fa on"
        " -lm none -b 2048 -ub 512 -r 5 --no-warmup -o jsonl"
    )
    assert options.test_count == 8 and options.longest_context == 228


# --- the tool --------------------------------------------------------------------------------------------


@pytest.mark.tool
def test_every_test_that_was_asked_for(toolchain: Toolchain, base_gguf: Path) -> None:
    options = BenchOptions(
        prompt_tokens=(16, 32), generated_tokens=(4,), depths=(0, 64), repetitions=2,
        type_k="q8_0", type_v="q8_0", flash_attention="on", load_mode="none",
    )  # fmt: skip
    found = bench.run(toolchain, base_gguf, options)
    assert [(it.prompt_tokens, it.generated_tokens, it.depth_tokens) for it in found] == [
        (16, 0, 0), (32, 0, 0), (0, 4, 0), (16, 0, 64), (32, 0, 64), (0, 4, 64),
    ]  # fmt: skip
    for result in found:
        assert len(result.samples_ns) == 2 and min(result.samples_ns) > 0
        assert (result.type_k, result.flash_attention, result.load_mode) == ("q8_0", "on", "none")
    assert toolchain.commit is None or found[0].build_commit.startswith(toolchain.commit[:7])


@pytest.mark.tool
def test_by_hand_it_is_the_same(
    toolchain: Toolchain, base_gguf: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What ggq runs is what a person would type, and what it reads is what stands there."""
    with caplog.at_level(logging.DEBUG, process.LOG):
        bench.run(toolchain, base_gguf, QUICK)
    told = caplog.messages
    tool = toolchain.tool("llama-bench")
    by_hand = (
        f"{tool} -m {base_gguf} -p 16 -n 0 -d 0 -t 1 -ngl 0 -dev none -ctk f16 -ctv f16 -fa auto -lm auto"
        " -b 2048 -ub 512 -r 2 -o jsonl"
    )
    assert told[0] == f"$ {by_hand}"
    printed = subprocess.run(by_hand.split(), capture_output=True, text=True, check=True).stdout
    raw = json.loads(printed)
    (read,) = bench.results(printed.splitlines())
    assert list(read.samples_ns) == raw["samples_ns"]
    assert list(read.samples_tokens_per_s) == raw["samples_ts"]
    assert (read.threads, read.n_batch, read.n_ubatch, read.n_gpu_layers) == (1, 2048, 512, 0)


@pytest.mark.tool
def test_an_rpc_device_is_found_and_used(toolchain: Toolchain, base_gguf: Path, rpc_server: str) -> None:
    (device,) = bench.devices(toolchain, (rpc_server,))
    assert device.name == "RPC0" and device.description == rpc_server and device.memory_total_bytes > 0
    offload = Offload(n_gpu_layers=2, rpc=(rpc_server,))
    (result,) = bench.run(toolchain, base_gguf, replace(QUICK, offload=offload))
    assert (result.backends, result.gpu_names, result.n_gpu_layers) == ("RPC", rpc_server, 2)


@pytest.mark.tool
def test_a_server_that_is_not_there(toolchain: Toolchain, base_gguf: Path) -> None:
    with pytest.raises(ToolchainProblem, match=r"127\.0\.0\.1:1 cannot be reached"):
        bench.devices(toolchain, ("127.0.0.1:1",))
    offload = Offload(n_gpu_layers=1, rpc=("127.0.0.1:1",))
    with pytest.raises(ToolchainProblem, match=r"127\.0\.0\.1:1 cannot be reached"):
        bench.run(toolchain, base_gguf, replace(QUICK, offload=offload))
    with pytest.raises(UsageProblem, match="not the address"):
        bench.devices(toolchain, ("nonsense",))


LONG = BenchOptions(generated_tokens=(400,), repetitions=500)


@pytest.mark.tool
def test_a_server_that_is_lost_half_way(toolchain: Toolchain, base_gguf: Path, rpc_server: str) -> None:
    offload = Offload(n_gpu_layers=3, rpc=(rpc_server,))
    with killing("ggml-rpc-server", signal.SIGKILL), pytest.raises(ToolchainProblem, match="lost half-way"):
        bench.run(toolchain, base_gguf, replace(LONG, offload=offload))


@pytest.mark.tool
def test_a_signal_is_named(toolchain: Toolchain, base_gguf: Path) -> None:
    with (
        killing("llama-bench", signal.SIGKILL),
        pytest.raises(ToolFailed, match="killed by SIGKILL") as caught,
    ):
        bench.run(toolchain, base_gguf, LONG)
    assert caught.value.returncode == -signal.SIGKILL and "out-of-memory" not in str(caught.value)


@pytest.mark.tool
def test_the_out_of_memory_killer_is_named(
    toolchain: Toolchain, base_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's count is made up: its killer cannot be called without endangering the whole machine."""
    counts = iter([3, 4])
    monkeypatch.setattr(process, "_oom_kills", lambda: next(counts))
    with killing("llama-bench", signal.SIGKILL), pytest.raises(DoesNotFit) as caught:
        bench.run(toolchain, base_gguf, LONG)
    assert "context of 400 tokens does not fit" in caught.value.what
    assert "out-of-memory killer" in caught.value.why and "RAM are free" in caught.value.why


@pytest.mark.tool
def test_a_context_that_does_not_fit(toolchain: Toolchain, base_gguf: Path, tmp_path: Path) -> None:
    """On a machine that is small: the tool behind a limit on its memory."""
    tool = tmp_path / "llama-bench"
    tool.write_text(f'#!/bin/sh\nulimit -v 500000\nexec {toolchain.tool("llama-bench")} "$@"\n')
    tool.chmod(0o755)
    small = replace(toolchain, bin_dir=tmp_path)
    with pytest.raises(DoesNotFit) as caught:
        bench.run(small, base_gguf, replace(QUICK, depths=(400_000,)))
    assert "context of 400,016 tokens" in caught.value.what
    assert "on CPU were refused" in caught.value.why


@pytest.mark.tool
def test_what_llama_bench_does_not_take(toolchain: Toolchain, base_gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match="does not take -ctk q9"):
        bench.run(toolchain, base_gguf, replace(QUICK, type_k="q9"))
    with pytest.raises(UsageProblem, match="requires flash_attn"):
        bench.run(toolchain, base_gguf, replace(QUICK, type_v="q4_0", flash_attention="off"))
    with pytest.raises(UsageProblem, match="comma"):
        bench.run(toolchain, tmp_path / "a,b.gguf", QUICK)


@pytest.mark.tool
def test_a_file_that_llama_cpp_refuses(toolchain: Toolchain, tmp_path: Path) -> None:
    (tmp_path / "no.gguf").write_bytes(b"GGUF nonsense")
    with pytest.raises(GgufProblem, match=r"does not load no\.gguf"):
        bench.run(toolchain, tmp_path / "no.gguf", QUICK)


@pytest.mark.tool
def test_a_tool_that_says_nothing(toolchain: Toolchain, base_gguf: Path, tmp_path: Path) -> None:
    tool = tmp_path / "llama-bench"
    tool.write_text("#!/bin/sh\nexit 0\n")
    tool.chmod(0o755)
    with pytest.raises(ToolchainProblem, match="1 tests of 2 runs were asked for; 0 came"):
        bench.run(replace(toolchain, bin_dir=tmp_path), base_gguf, QUICK)

"""Memory as it is measured: real loads and full contexts of the embedded model."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import ggq
from ggq.cli.main import cli
from ggq.errors import DoesNotFit, GgufProblem, ToolchainProblem, ToolFailed, UsageProblem
from ggq.llamacpp import memory as llama_memory
from ggq.llamacpp.memory import Load
from ggq.llamacpp.toolchain import Toolchain
from ggq.measurement import memory as bench_memory
from ggq.measurement.memory import measure
from ggq.measurement.settings import MemorySettings, Placement
from ggq.records.journal import Journal
from ggq.session import Session
from ggq.system import hardware

pytestmark = pytest.mark.tool
MIB = 1 << 20
linux_only = pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="this system is not Linux"
)


@pytest.fixture(scope="session")
def quantized(base_gguf: Path, toolchain: Toolchain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = ggq.quantize(
        base_gguf, ["Q4_K_M"], tmp_path_factory.mktemp("memory"), session=Session(toolchain=toolchain)
    )
    return made.files[0].paths[0]


def bench(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["bench", "memory", *map(str, arguments)])


# ---- what is measured ------------------------------------------------------------------------------------


@linux_only
def test_the_buffers_explain_what_was_measured(quantized: Path, toolchain: Toolchain) -> None:
    parts: list[bench_memory.MemoryResult] = []
    settings = MemorySettings(contexts=(256,), types_k=("f16", "q8_0"))
    result = measure(quantized, settings, session=Session(toolchain), on_part=parts.append)
    assert [(cell.type_k, cell.load_mode) for cell in result.cells] == [
        ("f16", "mmap"), ("f16", "none"), ("q8_0", "mmap"), ("q8_0", "none"),
    ]  # fmt: skip
    assert [part.cells for part in parts] == [result.cells[: count + 1] for count in range(4)]
    for cell in result.cells:
        run = cell.measured
        assert run is not None
        assert run.prompt_tokens + run.generated_tokens == 256
        assert run.peaks.anonymous_bytes
        assert run.peaks.file_bytes
        assert run.peaks.resident_bytes > run.peaks.anonymous_bytes
        assert cell.explained_bytes is not None
        assert cell.residual_bytes == run.peaks.anonymous_bytes - cell.explained_bytes
        assert abs(cell.residual_bytes) < 24 * MIB
        assert abs(run.peaks.anonymous_bytes - cell.predicted_bytes) < 24 * MIB
        assert {buffer.use for buffer in run.buffers} == {"model", "KV", "output", "compute"}
        # Weights are mapped, or in memory of the process.
        assert bool(run.buffers_bytes("file")) == (cell.load_mode == "mmap")
        assert run.gpus is None
    caches = [
        next(it for it in cell.measured.buffers if it.use == "KV") for cell in result.cells if cell.measured
    ]
    assert caches[2].size_bytes < 0.6 * caches[0].size_bytes
    json.dumps(asdict(result))


def test_the_default_context_is_the_models_own(quantized: Path, toolchain: Toolchain) -> None:
    result = measure(quantized, MemorySettings(load_modes=("none",)), session=Session(toolchain))
    assert [cell.context_tokens for cell in result.cells] == [512]


def test_quick_runs_the_shortest_context_and_reckons_the_others(
    quantized: Path, toolchain: Toolchain
) -> None:
    settings = MemorySettings(contexts=(512, 64), load_modes=("mmap",), quick=True)
    short, long = measure(quantized, settings, session=Session(toolchain)).cells
    assert (short.context_tokens, long.context_tokens) == (64, 512)
    assert short.measured is not None
    assert long.measured is long.residual_bytes is None
    assert long.predicted_bytes > 0


def test_layers_on_another_device_are_told_apart(
    quantized: Path, toolchain: Toolchain, rpc_server: str
) -> None:
    settings = MemorySettings(contexts=(256,), load_modes=("none",), placement=Placement(-1, (rpc_server,)))
    (cell,) = measure(quantized, settings, session=Session(toolchain)).cells
    (device,) = cell.predicted.devices
    assert device.name == "RPC0" and device.is_elsewhere
    assert not any(row.is_elsewhere for row in cell.predicted.host)
    assert device.sum_bytes > 0
    assert device.device_free_bytes
    assert cell.measured is not None
    assert cell.measured.buffers_bytes("device") > cell.measured.buffers_bytes("own")
    # A server's memory is out of sight.
    assert cell.measured.gpus is None


def test_every_last_word_of_the_breakdown_arrives(quantized: Path, toolchain: Toolchain) -> None:
    """llama.cpp's logger once lost its last lines, with exit 0."""
    found = {
        replace(llama_memory.breakdown(toolchain, quantized, Load(512)), process_bytes=None)
        for _ in range(20)
    }
    assert len(found) == 1


# ---- what cannot be measured -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (MemorySettings(contexts=(256, 1024)), "no context of 1,024 tokens. It was trained for 512."),
        (MemorySettings(contexts=(8,)), "too short"),
        (MemorySettings(types_k=("f16",), types_v=("q9_9",)), "There is no type of the cache 'q9_9'"),
        (MemorySettings(load_modes=("mlock",)), "There is no load mode whose memory is measured 'mlock'"),
        (MemorySettings(flash_attention="maybe"), "There is no setting of flash attention 'maybe'"),
    ],
)  # fmt: skip
def test_settings_that_no_run_can_have(quantized: Path, settings: MemorySettings, words: str) -> None:
    with pytest.raises(UsageProblem) as caught:
        measure(quantized, settings, session=Session())
    assert words in str(caught.value)


def test_what_is_not_a_gguf(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("not a model at all, but long enough to be one")
    with pytest.raises(GgufProblem):
        measure(tmp_path / "text.gguf", session=Session())


def test_llama_cpps_own_reason_is_passed_on(quantized: Path, toolchain: Toolchain) -> None:
    settings = MemorySettings(types_k=("q8_0",), flash_attention="off")
    with pytest.raises(GgufProblem, match="quantized V cache requires flash_attn to be enabled"):
        measure(quantized, settings, session=Session(toolchain))


def test_a_server_that_is_not_there(quantized: Path, toolchain: Toolchain) -> None:
    settings = MemorySettings(placement=Placement(-1, ("127.0.0.1:9",)))
    with pytest.raises(ToolchainProblem, match=r"127\.0\.0\.1:9 cannot be reached"):
        measure(quantized, settings, session=Session(toolchain))


def test_a_broken_measurement_goes_on_where_it_stopped(
    quantized: Path, toolchain: Toolchain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = MemorySettings(contexts=(64, 128), load_modes=("none",))
    real, runs = llama_memory.fill_context, itertools.count()

    def breaks(*arguments: object) -> llama_memory.FilledContext:
        if next(runs) == 1:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(llama_memory, "fill_context", breaks)
    parts: list[bench_memory.MemoryResult] = []

    def again() -> bench_memory.MemoryResult:
        journal = Journal(tmp_path / "journal")
        return measure(quantized, settings, session=Session(toolchain), journal=journal, on_part=parts.append)

    with pytest.raises(KeyboardInterrupt):
        again()
    [before] = parts
    result = again()
    assert next(runs) == 3
    assert result.cells[0].measured == before.cells[0].measured and result.cells[1].measured


def test_one_that_fails_half_way_says_so(
    quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, runs = llama_memory.fill_context, itertools.count()

    def fails(*arguments: object) -> llama_memory.FilledContext:
        if next(runs) == 1:
            raise ToolFailed(["llama-bench"], -6, ["last words"])
        return real(*arguments)

    monkeypatch.setattr(llama_memory, "fill_context", fails)
    result = bench(quantized, "-c", "64,128", "-lm", "none", "-o", tmp_path / "record.json")
    assert result.exit_code == 1 and "64" in result.stdout
    assert "SIGABRT" in result.stderr and "last words" in result.stderr


def test_too_little_memory_is_refused_with_numbers_unless_forced(
    quantized: Path, toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = MemorySettings(contexts=(256,), load_modes=("none",))
    monkeypatch.setattr(hardware, "available_ram_bytes", lambda: 1 * MIB)
    with pytest.raises(DoesNotFit) as caught:
        measure(quantized, settings, session=Session(toolchain))
    assert "1.05 MB of RAM are free" in caught.value.why
    assert measure(quantized, replace(settings, force=True), session=Session(toolchain)).cells[0].measured


def test_a_context_that_would_fit_is_named(
    quantized: Path, toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = llama_memory.BreakdownRow("host", "Host", 100 * MIB, 400 * MIB, 50 * MIB)
    monkeypatch.setattr(
        llama_memory, "breakdown", lambda *_: llama_memory.Breakdown((row,), process_bytes=10 * MIB)
    )
    monkeypatch.setattr(hardware, "available_ram_bytes", lambda: 360 * MIB)
    with pytest.raises(DoesNotFit, match="A context of about 256 tokens would fit"):
        measure(quantized, MemorySettings(contexts=(512,)), session=Session(toolchain))


def test_the_out_of_memory_killer_is_named_with_the_numbers(
    quantized: Path, toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The killer itself cannot be called without harm to others: its mark in the child's end is set here."""

    def killed(*_: object) -> None:
        raise ToolFailed(["llama-bench"], -9, [], out_of_memory=True)

    monkeypatch.setattr(llama_memory, "fill_context", killed)
    with pytest.raises(DoesNotFit) as caught:
        measure(quantized, MemorySettings(contexts=(256,)), session=Session(toolchain))
    assert "out-of-memory killer ended the run" in caught.value.why
    assert "It should have fitted" in caught.value.next_step


# ---- the command -----------------------------------------------------------------------------------------


def test_the_table_fits_eighty_columns(quantized: Path) -> None:
    result = bench(quantized, "-c", "64,128", "-ctk", "f16,q8_0", "-ctv", "f16")
    assert result.exit_code == 0, result.output
    table = [line for line in result.stdout.splitlines() if "own:" not in line]
    assert max(map(len, table)) <= 80
    assert sum(line.split()[1:3] == ["q8_0/f16", "mmap"] for line in table) == 2


def test_the_json_has_every_buffer(quantized: Path, rpc_server: str) -> None:
    result = bench(quantized, "-c", "64", "-lm", "none", "--rpc", rpc_server, "--json")
    assert result.exit_code == 0, result.output
    (model,) = json.loads(result.stdout)["models"]
    (cell,) = model["cells"]
    assert {buffer["place"] for buffer in cell["measured"]["buffers"]} == {"own", "device"}
    assert [row["kind"] for row in cell["predicted"]["rows"]][:2] == ["device", "host"]


def test_memory_that_is_elsewhere_is_said_to_be(quantized: Path, rpc_server: str) -> None:
    for server, said in (([], False), (["--rpc", rpc_server], True)):
        result = bench(quantized, "-c", "64", "-lm", "none", "-ngl", "all" if server else "0", *server)
        assert result.exit_code == 0, result.output
        assert ("not measured: it is elsewhere" in " ".join(result.stdout.split())) == said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-c", "many"], "'many' is not a valid integer"),
        (["-ctk", "q9_9"], "'q9_9' is not one of"),
        (["-ngl", "some"], "'some' is no whole number"),
        (["-lm", "mlock"], "'mlock' is not one of 'mmap', 'none'"),
    ],
)
def test_options_that_cannot_be_read(arguments: list[str], words: str) -> None:
    result = bench("model.gguf", *arguments)
    assert result.exit_code == 2
    assert words in result.output


def test_types_for_keys_and_values_must_pair() -> None:
    result = bench("model.gguf", "-ctk", "f16,q8_0", "-ctv", "f16,f16,f16")
    assert result.exit_code == 2 and "different numbers of types" in result.stderr

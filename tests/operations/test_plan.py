"""`ggq plan`: sizes to the byte and memory, before there is a file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from hubserver import HubServer

import ggq
from ggq.cli.main import cli
from ggq.errors import CannotServe, CheckpointProblem, UsageProblem
from ggq.estimation import timings as calibration
from ggq.llamacpp import bench as llama_bench
from ggq.llamacpp import devices as ggml
from ggq.llamacpp import memory as llama_memory
from ggq.llamacpp.memory import ROUNDING_BYTES, Load
from ggq.llamacpp.toolchain import Toolchain
from ggq.llamacpp.words import CacheType
from ggq.operations import plan
from ggq.operations.plan_settings import PlanSettings
from ggq.operations.request import Settings
from ggq.session import Session
from ggq.system import hardware, process

pytestmark = pytest.mark.tool

QUIET = PlanSettings(speed_budget_s=0)


def test_the_plan_is_what_is_made(example: Path, toolchain: Toolchain, tmp_path: Path) -> None:
    names = ["Q2_K", "Q4_K_M", "Q8_0"]
    settings = PlanSettings(contexts=(128, 512), type_k=(CacheType.F16, CacheType.Q8_0), speed_budget_s=0)
    planned = plan.plan(example, names, settings, session=Session(toolchain=toolchain))
    made = ggq.convert_and_quantize(
        str(example), names, tmp_path / "out", Settings(threads=2, verify="off")
    ).files
    assert [it.size.file_bytes for it in planned.presets] == [file.size.file_bytes for file in made]
    assert [it.preset for it in planned.presets] == names
    for preset, file in zip(planned.presets, made, strict=True):
        assert preset.published is not None
        assert [it.memory.context_tokens for it in preset.loads] == [128, 128, 512, 512]
        for cell in preset.loads:
            memory = cell.memory
            load = Load(memory.context_tokens, memory.type_k, memory.type_v)
            real = llama_memory.breakdown(toolchain, file.paths[0], load)
            buffers = real.host_bytes - (real.process_bytes or 0)
            predicted = memory.weights_bytes + memory.cache_bytes + memory.compute_bytes
            assert buffers <= predicted <= buffers + len(real.host) * ROUNDING_BYTES
            assert cell.fits and memory.process_bytes > 0 and cell.speed is None


def test_a_machine_that_is_too_small_is_said(
    example: Path, toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ggq.system.hardware.available_ram_bytes", lambda: 1_000_000)
    found = plan.plan(example, ["Q8_0"], QUIET, session=Session(toolchain=toolchain))
    [cell] = found.presets[0].loads
    # A margin of a tenth of all RAM, or 1 GiB, is more than there is.
    assert found.room.ram_bytes == 0 and not cell.fits
    assert cell.memory.missing_bytes == cell.memory.ram_bytes


@pytest.mark.hub
def test_nothing_of_the_weights_is_downloaded(
    hub: HubServer, example: Path, toolchain: Toolchain, tmp_path: Path
) -> None:
    hub.add_repo("org/tiny", {path.name: path.read_bytes() for path in example.iterdir()})
    shown = CliRunner().invoke(cli, ["plan", "org/tiny", "--preset", "q4_k_m", "--json", "--no-speed"])
    assert shown.exit_code == 0, shown.stderr
    found = json.loads(shown.stdout)
    weights = (example / "model.safetensors").stat().st_size
    assert 0 < hub.bytes_sent("model.safetensors") < weights / 50
    # The file that is made afterwards has that size, with the repository in its metadata.
    made = ggq.convert_and_quantize("org/tiny", ["q4_k_m"], tmp_path / "out", Settings(verify="off"))
    assert made.files[0].size.file_bytes == found["presets"][0]["size"]["file_bytes"]


def test_what_cannot_be_planned_is_refused(example: Path, toolchain: Toolchain, tmp_path: Path) -> None:
    with pytest.raises(CannotServe, match="no context of"):
        plan.plan(example, ["Q8_0"], PlanSettings(contexts=(100_000,)), session=Session(toolchain=toolchain))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointProblem):
        plan.plan(tmp_path / "empty", ["Q8_0"], session=Session(toolchain=toolchain))


def test_a_second_plan_asks_nobody(
    example: Path, toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = PlanSettings(contexts=(128,), speed_budget_s=1e-9, threads=1)
    monkeypatch.setattr(calibration, "probe_s", lambda: 1.0)  # this machine may be busy just now
    first = plan.plan(example, ["Q4_K_M"], settings, session=Session(toolchain=toolchain))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a tool was run")

    monkeypatch.setattr(process, "run", refuse)
    second = plan.plan(example, ["Q4_K_M"], settings, session=Session(toolchain=toolchain))
    assert first.presets[0].size == second.presets[0].size
    [before], [after] = first.presets[0].loads, second.presets[0].loads
    assert before.speed == after.speed is not None
    assert before.memory.ram_bytes == after.memory.ram_bytes


def test_another_machine(example: Path, toolchain: Toolchain) -> None:
    """Its GPU is played by an RPC device; what is left out of the answer is the device's address."""
    whole = PlanSettings(ram_bytes=10**9, vram_bytes=10**9, speed_budget_s=0)
    found = plan.plan(example, ["Q8_0"], whole, session=Session(toolchain=toolchain))
    [cell] = found.presets[0].loads
    assert cell.offload.n_gpu_layers == found.layer_count == 3 and cell.offload.rpc == ()
    assert cell.fits and cell.memory.devices[0].needed_bytes > 0
    assert found.devices == ("GPU0",) and cell.memory.devices[0].name == "GPU0"
    assert found.room.ram_bytes == 9 * 10**8 and found.room.vram_bytes == {"GPU0": 9 * 10**8}
    assert found.threads is None, "of the other machine nothing is known"
    few = replace(whole, vram_bytes=2 * 10**6, reserve_vram_bytes=0)
    [cell] = plan.plan(example, ["Q8_0"], few, session=Session(toolchain=toolchain)).presets[0].loads
    assert cell.offload.n_gpu_layers == 0 and cell.fits


def test_layers_are_as_many_as_fit_a_device(
    example: Path, toolchain: Toolchain, rpc_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = PlanSettings(rpc=(rpc_server,), contexts=(128,), speed_budget_s=60, threads=1)
    [cell] = plan.plan(example, ["Q8_0"], settings, session=Session(toolchain=toolchain)).presets[0].loads
    assert cell.offload.n_gpu_layers == 3 and cell.speed is not None and cell.speed.layers == (1, 2)
    fixed = replace(settings, n_gpu_layers=2, speed_budget_s=0)
    [cell] = plan.plan(example, ["Q8_0"], fixed, session=Session(toolchain=toolchain)).presets[0].loads
    assert cell.offload.n_gpu_layers == 2
    monkeypatch.setattr(llama_bench, "devices", lambda *_: ())
    with pytest.raises(UsageProblem, match="no GPU"):
        plan.plan(example, ["Q8_0"], PlanSettings(n_gpu_layers=1), session=Session(toolchain=toolchain))


def test_the_table_tells_speed_with_its_error(example: Path, toolchain: Toolchain) -> None:
    arguments = ["plan", str(example), "--preset", "q4_k_m,q8_0", "--budget", "1s", "-t", "1"]
    shown = CliRunner().invoke(cli, arguments)
    assert shown.exit_code == 0, shown.stderr
    assert "tg t/s" in shown.stdout and "±" in shown.stdout
    assert "RAM may be used" in " ".join(shown.stdout.split())


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch, toolchain: Toolchain, rpc_server: str) -> PlanSettings:
    """An RPC device and a machine on which as much is free from one moment to the next."""
    listed = llama_bench.devices(toolchain, (rpc_server,))
    monkeypatch.setattr(llama_bench, "devices", lambda *_: listed)
    free_bytes = hardware.available_ram_bytes()
    monkeypatch.setattr(hardware, "available_ram_bytes", lambda: free_bytes)
    return PlanSettings(rpc=(rpc_server,), contexts=(128,), speed_budget_s=0, reserve_ram_bytes=0)


def test_a_draft_model_is_counted(
    example: Path, base_gguf: Path, toolchain: Toolchain, steady: PlanSettings
) -> None:
    settings = steady
    alone = plan.plan(example, ["Q8_0"], settings, session=Session(toolchain=toolchain))
    beside = plan.plan(
        example, ["Q8_0"], replace(settings, draft=base_gguf), session=Session(toolchain=toolchain)
    )
    taken = beside.companions_room
    assert beside.companions.draft_offload.n_gpu_layers == 3
    assert taken.ram_bytes > 0 and all(taken.vram_bytes.values())
    assert beside.room.ram_bytes == alone.room.ram_bytes - taken.ram_bytes
    [(device, room)] = beside.room.vram_bytes.items()
    assert room == alone.room.vram_bytes[device] - taken.vram_bytes[device]


def test_memory_that_a_gpu_shares_with_the_cpu_is_counted_once(
    example: Path, toolchain: Toolchain, steady: PlanSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Played by an RPC device that is said to have no memory of its own."""
    [cell] = plan.plan(example, ["Q8_0"], steady, session=Session(toolchain=toolchain)).presets[0].loads
    [device] = cell.memory.devices
    both = cell.memory.ram_bytes + device.needed_bytes + ROUNDING_BYTES
    gpu = hardware.Device(device.name, "Integrated", hardware.DeviceKind.IGPU, 1 << 40, 1 << 40)
    monkeypatch.setattr(ggml, "gpus", lambda _: (gpu,))
    monkeypatch.setattr(Toolchain, "may_see_gpus", True)
    for free_bytes, missing_bytes in ((both, 0), (both - 1, 1)):
        monkeypatch.setattr(hardware, "available_ram_bytes", lambda free=free_bytes: free)
        found = plan.plan(example, ["Q8_0"], steady, session=Session(toolchain=toolchain))
        [cell] = found.presets[0].loads
        assert found.room.vram_bytes == {device.name: free_bytes}
        assert cell.offload.n_gpu_layers == found.layer_count and cell.memory.devices[0].shares_ram
        assert cell.memory.missing_bytes == missing_bytes


def test_gpus_of_no_memory_are_refused(example: Path) -> None:
    with pytest.raises(UsageProblem, match="2 GPUs of no memory"):
        plan.plan(example, ["Q8_0"], PlanSettings(gpu_count=2))

"""Speed predicted: lines over layers, placements, and real runs of hollow files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from ggq.errors import DoesNotFit, GgqError, GgufProblem
from ggq.estimation import timings as calibration
from ggq.estimation.estimator import Account
from ggq.estimation.hollow_model import HollowModel, hollow_model
from ggq.estimation.speed import Costs, Kind, Line, blocks, estimate
from ggq.estimation.speed_meter import SpeedMeter
from ggq.estimation.timings import Calibration, Timings
from ggq.llamacpp import bench
from ggq.llamacpp.memory import Load
from ggq.llamacpp.offload import ALL_LAYERS, Offload
from ggq.llamacpp.threads import ThreadChoice
from ggq.llamacpp.toolchain import Toolchain
from ggq.presets import catalogue
from ggq.records.memo import Memo
from ggq.session import Session
from ggq.system import hardware

QUANTS = catalogue.load().resolve(["Q4_K_M", "Q8_0"])


# --- lines -----------------------------------------------------------------------------------------------


def test_a_line_through_two_cuts_foretells_a_deep_model() -> None:
    line = Line(((2, 1.0 + 2 * 0.5), (5, 1.0 + 5 * 0.5)), error=0.03)
    seconds, error = line.at(32)
    assert seconds == pytest.approx(1 + 32 * 0.5)
    # T(32) = 10 T(5) - 9 T(2): both points' errors, that much greater.
    assert error == pytest.approx(0.03 * ((10 * 3.5) ** 2 + (9 * 2.0) ** 2) ** 0.5)
    assert line.at(5) == (pytest.approx(3.5), pytest.approx(0.03 * 3.5))
    assert line.of_layers(6)[0] == pytest.approx(3.0)


def test_a_whole_model_is_its_own_forecast() -> None:
    assert Line(((30, 6.0),), 0.05).at(30) == (6.0, pytest.approx(0.3))
    assert Line(((30, 6.0),), 0.05).of_layers(10)[0] == pytest.approx(2.0)


def test_noise_greater_than_the_layers_widens_the_error_instead_of_going_below_zero() -> None:
    line = Line(((1, 1.1), (4, 1.0)), error=0.1)
    seconds, error = line.at(32)
    assert seconds == pytest.approx(8.0) and error == pytest.approx(1.6)
    assert line.of_layers(16)[0] == pytest.approx(4.0)


# --- placements ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("placement", "expected"),
    [
        (Offload(), {"cpu": 32}),
        (Offload(n_gpu_layers=ALL_LAYERS), {"device": 32}),
        (Offload(n_gpu_layers=33), {"device": 32}),
        (Offload(n_gpu_layers=99), {"device": 32}),
        (Offload(n_gpu_layers=11), {"device": 10, "beside": 22}),
        (Offload(n_gpu_layers=1), {"device": 0, "beside": 32}),
        (Offload(n_gpu_layers=33, n_cpu_moe=5), {"device": 27, "experts": 5}),
        (Offload(n_gpu_layers=33, n_cpu_moe=32), {"experts": 32}),
        # The first 24 blocks are on the CPU whole: of those that keep experts there, six are left.
        (Offload(n_gpu_layers=9, n_cpu_moe=30), {"device": 2, "experts": 6, "beside": 24}),
    ],
)
def test_where_blocks_lie(placement: Offload, expected: Mapping[Kind, int]) -> None:
    found = blocks(placement, 32)
    assert found == expected
    assert next(iter(found)) == next(iter(expected)), "the output layer's place comes first"


def test_a_mixed_placement_is_the_sum_of_its_places() -> None:
    slow, quick = Line(((1, 1.5), (3, 2.5)), 0.03), Line(((1, 0.2), (3, 0.4)), 0.03)
    costs: dict[Kind, Costs] = {
        "beside": Costs(slow, slow, depth_s=0.001),
        "device": Costs(quick, quick, depth_s=0.0),
    }
    found = estimate(costs, Offload(n_gpu_layers=11), 32, 1000, ThreadChoice(2, 2))
    assert found is not None
    # 22 blocks at 0.5 s on the CPU; on the device 10 at 0.1 s and the 0.1 s spent once.
    assert found.generation.tokens_per_s == pytest.approx(1 / (11 + 1 + 0.1))
    assert found.full_context.tokens_per_s == pytest.approx(1 / (12.1 + 22 * 0.001 * 1000))
    assert 0.03 < found.generation.relative_error < 1
    assert (
        estimate({"beside": costs["beside"]}, Offload(n_gpu_layers=11), 32, 1000, ThreadChoice(2, 2)) is None
    )


# --- runs ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(example: Path, toolchain: Toolchain, tmp_path_factory: pytest.TempPathFactory) -> HollowModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("hollow")))
        return hollow_model(example, Session(toolchain))


def meter(tiny: HollowModel, file: Path, load: Load | None = None) -> SpeedMeter:
    account = Account(tiny)
    sizes = {preset.name: account.size(preset).file_bytes for preset in QUANTS}
    kept = Calibration(file, tiny.toolchain)
    made = SpeedMeter(tiny, account.facts(), sizes, load or Load(256), kept, devices=["RPC0 of this test"])
    made.threads = ThreadChoice(1, 1)
    return made


@pytest.mark.tool
def test_hollow_files_are_run_once(
    tiny: HollowModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "probe_s", lambda: 1.0)  # this machine may be busy just now
    costs = meter(tiny, tmp_path / "speed.json").measure(QUANTS, ["cpu"], 600)
    assert set(costs) == {"Q4_K_M", "Q8_0"}
    for of_preset in costs.values():
        [(layers, seconds)] = of_preset["cpu"].generation.points
        assert layers == 2 and 0 < seconds < 10
        assert of_preset["cpu"].prompt.at(2)[0] < seconds, (
            "a token of a prompt costs less than a generated one"
        )
    assert list(tiny.folder.glob("Q*.gguf")) == []

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("it was run again")

    monkeypatch.setattr(bench, "run", refuse)
    assert meter(tiny, tmp_path / "speed.json").measure(QUANTS, ["cpu"], 600) == costs


@pytest.mark.tool
def test_a_short_budget_still_foretells_one_preset(tiny: HollowModel, tmp_path: Path) -> None:
    costs = meter(tiny, tmp_path / "speed.json").measure(QUANTS, ["cpu"], 1e-9)
    assert {name: bool(found) for name, found in costs.items()} == {"Q4_K_M": True, "Q8_0": False}


@pytest.mark.tool
def test_a_device_is_measured_on_two_cuts(tiny: HollowModel, tmp_path: Path, rpc_server: str) -> None:
    load = Load(256, offload=Offload(rpc=(rpc_server,)))
    costs = meter(tiny, tmp_path / "speed.json", load).measure(QUANTS[:1], ["beside", "device"], 600)
    for kind in ("beside", "device"):
        assert [layers for layers, _ in costs["Q4_K_M"][kind].generation.points] == [1, 2]
    half = Offload(n_gpu_layers=2, rpc=(rpc_server,))
    assert estimate(costs["Q4_K_M"], half, 2, 256, ThreadChoice(1, 1)) is not None


@pytest.mark.tool
@pytest.mark.parametrize(
    "problem", [DoesNotFit("It does not fit."), GgufProblem("A cut that llama.cpp refuses.")]
)
def test_what_is_not_run_has_no_speed(
    tiny: HollowModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: GgqError
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise problem

    monkeypatch.setattr(bench, "run", refuse)
    assert meter(tiny, tmp_path / "speed.json").measure(QUANTS, ["cpu"], 60) == {"Q4_K_M": {}, "Q8_0": {}}


@pytest.mark.tool
def test_threads_are_chosen_on_this_machine(
    tiny: HollowModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "usable_cores", lambda: 2)
    monkeypatch.setattr(calibration, "probe_s", lambda: 1.0)
    first = meter(tiny, tmp_path / "speed.json")
    first.choose_threads(QUANTS)
    assert {first.threads.prompt, first.threads.generation} <= {1, 2}
    first.measure(QUANTS[:1], ["cpu"], 1e-9)  # which keeps what is known
    monkeypatch.setattr(bench, "run", None)
    second = meter(tiny, tmp_path / "speed.json")
    second.choose_threads(QUANTS)
    assert second.threads == ThreadChoice(first.threads.prompt, first.threads.generation)


@pytest.mark.tool
def test_another_device_has_timings_of_its_own(tiny: HollowModel, tmp_path: Path) -> None:
    account = Account(tiny)
    sizes = {preset.name: account.size(preset).file_bytes for preset in QUANTS}
    kept = Calibration(tmp_path / "speed.json", tiny.toolchain)
    keys = set()
    for device, rpc in (("A 24 GB", "a:1"), ("B 24 GB", "a:1"), ("A 24 GB", "b:1")):
        load = Load(256, offload=Offload(rpc=(rpc,)))
        made = SpeedMeter(tiny, account.facts(), sizes, load, kept, devices=[device])
        keys.add(made._key(QUANTS[0], "device", 2))
        keys.add(made._key(QUANTS[0], "cpu", 2))
    assert len(keys) == 3 + 1


@pytest.mark.tool
def test_large_models_are_cut_beyond_the_cache(
    tiny: HollowModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = replace(Account(tiny).facts(), block_count=32)
    monkeypatch.setattr(hardware, "last_cache_bytes", lambda: 100 << 20)
    monkeypatch.setattr(hardware, "available_ram_bytes", lambda: 16 << 30)
    sizes = {"Q4_K_M": 33 * (150 << 20), "Q8_0": 33 * (15 << 20)}
    kept = Calibration(tmp_path / "speed.json", tiny.toolchain)

    def cuts(sliding_window_tokens: int | None) -> list[tuple[int, ...]]:
        given = replace(facts, sliding_window_tokens=sliding_window_tokens)
        made = SpeedMeter(tiny, given, sizes, Load(256), kept)
        return [made.cuts(preset, "cpu") for preset in QUANTS]

    # Twice the cache in layers of 150 MiB is two; the small one is quicker whole.
    assert cuts(None) == [(2, 5), (32,)]
    assert cuts(4096) == [(6, 12), (32,)]
    monkeypatch.setattr(hardware, "available_ram_bytes", lambda: 512 << 20)
    assert cuts(None)[1] == (14, 28)
    # What is run on a device alone stays within its room.
    monkeypatch.setattr(hardware, "available_ram_bytes", lambda: 16 << 30)

    def on_device(vram_bytes: int) -> list[tuple[int, ...]]:
        made = SpeedMeter(tiny, facts, sizes, Load(256), kept, devices=["A"], vram_bytes=vram_bytes)
        return [made.cuts(preset, "device") for preset in QUANTS]

    assert on_device(8 << 30) == [(2, 5), (16, 32)]
    assert on_device(900 << 20) == [(2, 4), (16, 32)]
    assert on_device(400 << 20) == [(1, 2), (14, 18)]


# --- what is kept ----------------------------------------------------------------------------------------


def test_timings_are_kept_for_this_machine_only(
    toolchain: Toolchain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probes = [1.0]
    monkeypatch.setattr(calibration, "probe_s", lambda: probes[0])
    file = tmp_path / "speed.json"

    def kept() -> bool:
        return "run" in Calibration(file, toolchain)

    first = Calibration(file, toolchain)
    first.add("run", Timings((1.0,), (2.0,)))
    first.add("run", Timings((1.5,), ()))
    first.save()
    assert Calibration(file, toolchain)["run"] == Timings((1.0, 1.5), (2.0,))
    probes[0] = 1.2
    assert kept(), "a little noise"
    for other in (0.7, 1.4):
        probes[0] = other
        assert not kept(), "the machine is much faster, or slower, than it was"
    probes[0] = 1.0
    assert kept()
    for name, value in (("power_state", "battery"), ("cpu_name", "another"), ("usable_cores", 99)):
        with monkeypatch.context() as patch:
            patch.setattr(hardware, name, lambda value=value: value)
            assert not kept(), name
    assert "run" not in Calibration(file, replace(toolchain, commit="0" * 40))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema_version": 1}', '{"schema_version": 0}'])
def test_a_memo_that_cannot_be_read_is_asked_anew(content: str, tmp_path: Path) -> None:
    file = tmp_path / "memo.json"
    file.write_text(content)
    memo = Memo(file, {"who": "me"})
    assert memo.get("question", int, lambda: 42) == 42
    memo.save()
    assert Memo(file, {"who": "me"}).get("question", int, lambda: 0) == 42
    assert "question" not in Memo(file, {"who": "another"})


def test_the_probe_takes_time() -> None:
    assert 0 < calibration.probe_s() < 60


def test_power_and_cache_are_told() -> None:
    assert hardware.power_state().split()[0] in ("mains", "battery")
    cache = hardware.last_cache_bytes()
    assert cache is None or cache > 1 << 18

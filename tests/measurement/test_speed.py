"""Speed: what is quoted of repetitions, what may be asked for, and real runs on the CPU and an RPC device.

No test says how fast anything is.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import statistics
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from killing import killing

from ggq.cli.main import cli
from ggq.errors import UsageProblem
from ggq.gguf import file as gguf_file
from ggq.gguf.file import GgufFile
from ggq.llamacpp import bench, binding_bench, threads
from ggq.llamacpp.binding_bench import Timing
from ggq.llamacpp.offload import ALL_LAYERS, Offload
from ggq.llamacpp.toolchain import Toolchain
from ggq.measurement import binding_speed as binding
from ggq.measurement import speed, speed_tests
from ggq.measurement.binding_speed import binding_rate
from ggq.measurement.record import FILE_NAME, Record
from ggq.measurement.settings import SpeedSettings
from ggq.measurement.speed_tests import Point
from ggq.measurement.throughput import Precision, human_rate, pooled_deviation, rate
from ggq.progress import Event, Step
from ggq.records.journal import Journal
from ggq.session import Session
from ggq.setup import selftest
from ggq.system import hardware, process
from ggq.system.hardware import Device, DeviceKind

QUICK = SpeedSettings(
    prompt_tokens=(16,), generated_tokens=(4,), threads=1, precision=Precision(batch=2, most=4), binding=False
)
GPU = Device("CUDA0", "a GPU", DeviceKind.GPU, 1 << 30, 1 << 30)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> GgufFile:
    """One block, a context of 64 tokens, no tokenizer."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    selftest.write_tiny_model(path)
    return gguf_file.read(path)


def with_blocks(gguf: GgufFile, count: int) -> GgufFile:
    return replace(gguf, metadata={**gguf.metadata, "llama.block_count": count})


# --- statistics ------------------------------------------------------------------------------------------


def test_a_rate_of_one_batch() -> None:
    found = rate(100, [[1_000_000_000, 2_000_000_000, 4_000_000_000]])
    samples = [100.0, 50.0, 25.0]
    assert found.samples_tokens_per_s == tuple(samples)
    assert found.samples_ns == (1_000_000_000, 2_000_000_000, 4_000_000_000)
    assert found.median_tokens_per_s == 50 and found.mean_tokens_per_s == pytest.approx(175 / 3)
    deviation = statistics.stdev(samples) / (175 / 3)
    assert found.relative_deviation == pytest.approx(deviation)
    assert found.relative_standard_error == pytest.approx(deviation / math.sqrt(3))
    assert found.batches == (3,)


def test_batches_that_differ_count_for_more_than_their_repetitions() -> None:
    """Two processes at 100 and 50 t/s: six equal repetitions say little, two differing means say all."""
    found = rate(100, [[1_000_000_000] * 3, [2_000_000_000] * 3])
    assert found.median_tokens_per_s == 75 and found.batches == (3, 3)
    assert found.relative_standard_error == pytest.approx(statistics.stdev([100, 50]) / math.sqrt(2) / 75)
    assert found.relative_standard_error == pytest.approx(1 / 3)


def test_one_repetition_has_no_error() -> None:
    found = rate(100, [[1_000_000_000]])
    assert (found.relative_standard_error, found.relative_deviation) == (None, None)
    assert pooled_deviation([found]) is None
    assert not Precision().settled(found)


def test_pooled_deviation_is_the_root_mean_square() -> None:
    one, other = rate(1, [[100, 100]]), rate(1, [[100, 110, 120]])
    assert other.relative_deviation is not None
    assert pooled_deviation([one, other]) == pytest.approx(other.relative_deviation / math.sqrt(2))


def test_when_there_are_enough_repetitions() -> None:
    precision = Precision(target=0.02, batch=3, most=8, most_seconds=60)
    second = 1_000_000_000
    assert precision.next_batch(None) == 3
    assert precision.next_batch(rate(1, [[second] * 3])) == 3, "one process alone proves nothing"
    assert precision.next_batch(rate(1, [[second] * 3, [second] * 3])) == 0
    unsettled = [[second] * 3, [2 * second] * 3]
    assert precision.next_batch(rate(1, unsettled)) == 2, "no more than 8"
    assert precision.next_batch(rate(1, [*unsettled, [second] * 2])) == 0
    assert precision.next_batch(rate(1, [[29 * second] * 2])) == 0, "no time for a third"
    assert precision.next_batch(rate(1, [[25 * second] * 2])) == 0
    assert precision.next_batch(rate(1, [[15 * second] * 2])) == 2
    assert Precision(most=2).next_batch(None) == 2


def test_rates_are_written_with_three_digits() -> None:
    assert [human_rate(value) for value in (12345.6, 123.4, 45.67, 3.456, 0.5)] == [
        "12,346", "123", "45.7", "3.46", "0.50",
    ]  # fmt: skip


# --- what may be asked for -------------------------------------------------------------------------------


def test_points(tiny: GgufFile) -> None:
    assert [str(point) for point in speed_tests.points(tiny, (16, 8, 16), (4,), (0, 32))] == [
        "pp16", "pp8", "tg4", "pp16 @ d32", "pp8 @ d32", "tg4 @ d32",
    ]  # fmt: skip
    assert speed_tests.points(tiny, (0,), (4,), (0,)) == (Point("generation", 4, 0),)


def test_defaults_shrink_to_the_context(tiny: GgufFile) -> None:
    assert [str(point) for point in speed_tests.points(tiny, None, None, (0, 60))] == [
        "pp64", "tg64", "pp4 @ d60", "tg4 @ d60",
    ]  # fmt: skip
    roomy = replace(tiny, metadata={**tiny.metadata, "llama.context_length": 4096})
    assert [str(point) for point in speed_tests.points(roomy, None, None, (0,))] == ["pp512", "tg128"]
    assert [str(point) for point in speed_tests.points(roomy, None, None, (0,), quick=True)] == [
        "pp128",
        "tg32",
    ]


@pytest.mark.parametrize(
    ("prompt", "generated", "depths", "words"),
    [
        ((65,), (), (0,), "a prompt of 65 tokens.*context of 65 tokens; the model was trained for 64"),
        ((16,), (), (0, 49), "a prompt of 16 tokens at a depth of 49"),
        ((), (100,), (0,), "100 generated tokens"),
        (None, None, (64,), "a depth of 64"),
        ((0,), (0,), (0,), "nothing to measure"),
        ((16,), (4,), (), "nothing to measure"),
    ],
)
def test_what_the_context_has_no_room_for(
    tiny: GgufFile, prompt: Any, generated: Any, depths: tuple[int, ...], words: str
) -> None:
    with pytest.raises(UsageProblem, match=words):
        speed_tests.points(tiny, prompt, generated, depths)


@pytest.mark.parametrize(
    ("blocks", "asked", "expected"),
    [
        (32, "sweep", [0, 8, 16, 24, 33]),
        (2, "sweep", [0, 1, 2, 3]),
        (1, "sweep", [0, 1, 2]),
        (32, (20, 10, 0, 10), [0, 10, 20]),
        (32, (ALL_LAYERS,), [33]),
        (32, (99,), [33]),
        (32, None, [33]),
    ],
)
def test_placements(tiny: GgufFile, blocks: int, asked: Any, expected: list[int]) -> None:
    found = speed_tests.placements(with_blocks(tiny, blocks), [GPU], asked, rpc=("a:1",))
    assert [placement.n_gpu_layers for placement in found] == expected
    assert all(placement.rpc == (("a:1",) if placement.n_gpu_layers else ()) for placement in found)


def test_without_a_gpu_layers_stay_on_the_cpu(tiny: GgufFile) -> None:
    assert speed_tests.placements(tiny, [], None) == (Offload(),)
    assert speed_tests.placements(tiny, [], (0,)) == (Offload(),)
    for asked in ((1,), (0, ALL_LAYERS), "sweep"):
        with pytest.raises(UsageProblem, match="no GPU to put layers on"):
            speed_tests.placements(tiny, [], asked)


def test_placements_that_do_not_fit_the_model(tiny: GgufFile) -> None:
    with pytest.raises(UsageProblem, match="no experts"):
        speed_tests.placements(tiny, [GPU], None, n_cpu_moe=1)
    with pytest.raises(UsageProblem, match="2 shares for 1 devices"):
        speed_tests.placements(tiny, [GPU], None, tensor_split=(1, 1))


# --- the binding's words ---------------------------------------------------------------------------------


def test_a_rate_of_the_binding() -> None:
    found = binding_rate(100, [[Timing(100, 80, 5), Timing(100, 80, 5)]])
    assert found.rate.median_tokens_per_s == pytest.approx(1e9)
    assert (found.decode_share, found.sampling_share) == (0.8, 0.05)
    assert found.decode_tokens_per_s == pytest.approx(1.25e9) and found.decode_samples_ns == (80, 80)


DEFAULT: dict[str, Any] = {"flash_attn": False, "n_batch": 512}
MATCHING: dict[str, Any] = {"flash_attn": True, "n_batch": 512}


def python_rate(total_ns: int, decode_ns: int, sample_ns: int = 0) -> binding.BindingRate:
    return binding_rate(100, [[Timing(total_ns, decode_ns, sample_ns)] * 2])


@pytest.mark.parametrize(
    ("found", "matched", "noise", "expected"),
    [
        (python_rate(1050, 1000), None, 0.01, ""),
        (
            python_rate(1250, 1000, 125),
            None,
            0.01,
            "Python gets 0.80 of llama-bench's rate. 20% of its time is outside llama_decode: 10% in the"
            " sampler, which llama-bench does without, and 10% in Python.",
        ),
        (
            python_rate(2000, 1990),
            python_rate(1010, 1000),
            0.01,
            "Python gets 0.50 of llama-bench's rate. llama_decode alone runs at 0.50 of that rate. With"
            " flash_attn=True as llama-bench has it, instead of flash_attn=False, it runs at 1.00, and Python"
            " gets 99,009,901 t/s. The rest is within the noise (repetitions differ by 1%).",
        ),
        (
            python_rate(2000, 1990),
            python_rate(1510, 1500),
            0.01,
            "Python gets 0.50 of llama-bench's rate. llama_decode alone runs at 0.50 of that rate. With"
            " flash_attn=True as llama-bench has it, instead of flash_attn=False, it runs at 0.67, and Python"
            " gets 66,225,166 t/s. The rest is beyond the noise (repetitions differ by 1%). One more"
            " difference: llama-bench keeps a pool of threads, the binding has one made for each call.",
        ),
        (
            python_rate(2000, 1990),
            python_rate(2210, 2200),
            0.3,
            "Python gets 0.50 of llama-bench's rate. llama_decode alone runs at 0.50 of that rate."
            " flash_attn=True as llama-bench has it brings it no closer. The rest is within the noise"
            " (repetitions differ by 30%).",
        ),
        (
            python_rate(800, 600),
            None,
            0.4,
            "Python gets 1.25 of llama-bench's rate. llama_decode alone runs at 1.67 of that rate."
            " The rest is within the noise (repetitions differ by 40%).",
        ),
    ],
)
def test_a_gap_is_explained(
    found: binding.BindingRate, matched: binding.BindingRate | None, noise: float, expected: str
) -> None:
    bench_rate = rate(100, [[1000, 1000]])
    assert binding.explain(bench_rate, found, DEFAULT, matched, MATCHING, noise) == expected


# --- real runs -------------------------------------------------------------------------------------------


@pytest.mark.tool
def test_a_model_and_its_record(
    toolchain: Toolchain, base_gguf: Path, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[Event] = []
    settings = replace(QUICK, depths=(0, 64), binding=True)
    with caplog.at_level(logging.DEBUG, process.LOG):
        result = speed.measure(base_gguf, settings, session=Session(toolchain, listener=events.append))
    told = caplog.messages
    assert (result.file, result.preset, result.layer_count) == ("tiny-llama-BF16.gguf", "BF16", 3)
    assert [str(figure.point) for figure in result.figures] == ["pp16", "tg4", "pp16 @ d64", "tg4 @ d64"]
    for figure in result.figures:
        assert figure.speed.batches == (2, 2) and len(figure.speed.samples_ns) == 4
        assert figure.speed.median_tokens_per_s == statistics.median(figure.speed.samples_tokens_per_s)
        assert (figure.n_gpu_layers, figure.devices, figure.threads) == (0, (), 1)
        assert f"$ {toolchain.tool('llama-bench')} -m {base_gguf} {' '.join(figure.arguments)}" in told
        assert figure.binding is not None
        own = figure.binding.speed
        assert own.rate.batches == (2, 2) and 0 < own.decode_share <= 1
        assert figure.binding.ratio == pytest.approx(
            own.rate.median_tokens_per_s / figure.speed.median_tokens_per_s
        )
        assert bool(figure.binding.explanation) == (abs(figure.binding.ratio - 1) > 0.1)
        assert figure.binding.options["n_threads"] == 1
    json.dumps(asdict(result))
    steps = [event for event in events if isinstance(event, Step) and event.name.startswith("speed of")]
    assert (steps[0].done, steps[-1].done, steps[-1].total) == (0, 8, 8)
    assert all(before.done <= after.done for before, after in itertools.pairwise(steps))


@pytest.mark.tool
def test_an_offload_sweep_on_an_rpc_device(toolchain: Toolchain, base_gguf: Path, rpc_server: str) -> None:
    settings = replace(QUICK, n_gpu_layers="sweep", rpc=(rpc_server,), binding=True)
    result = speed.measure(base_gguf, settings, session=Session(toolchain))
    rows = [(figure.n_gpu_layers, figure.devices) for figure in result.figures]
    named = (f"RPC0 ({rpc_server})",)
    assert rows == [(0, ()), (0, ()), *((layers, named) for layers in (1, 1, 2, 2, 3, 3))]
    assert result.backends == "RPC"
    assert [figure.binding is not None for figure in result.figures] == [True] * 2 + [False] * 6
    assert "llama-cpp-python's Llama has no option for an RPC server." in result.remarks


@pytest.mark.tool
def test_a_server_lost_half_way_leaves_what_was_measured(
    toolchain: Toolchain, base_gguf: Path, rpc_server: str
) -> None:
    settings = replace(
        QUICK, generated_tokens=(400,), n_gpu_layers=(0, ALL_LAYERS), rpc=(rpc_server,),
        precision=Precision(batch=20, most=20),
    )  # fmt: skip
    with killing("ggml-rpc-server"):
        result = speed.measure(base_gguf, settings, session=Session(toolchain))
    assert {figure.point for figure in result.figures if figure.n_gpu_layers == 0} == {
        Point("prompt", 16, 0), Point("generation", 400, 0),
    }  # fmt: skip
    (failure,) = result.failures
    assert failure.n_gpu_layers == 3 and "lost half-way" in failure.error.what


@pytest.mark.tool
def test_a_broken_sweep_loses_the_batch_in_flight_alone(
    toolchain: Toolchain,
    base_gguf: Path,
    rpc_server: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = replace(
        QUICK, threads="auto", n_gpu_layers=(0, ALL_LAYERS), rpc=(rpc_server,), binding=True,
        precision=Precision(target=0, batch=2, most=4),
    )  # fmt: skip
    # The threads; two rounds of two points without the device, each with one of the binding; two with it.
    all_runs = 1 + 2 * (2 + 1) + 2 * 2
    runs: list[str] = []
    breaks_at: int | None = all_runs - 1
    for module in (bench, binding_bench):

        def run(*arguments: Any, real: Any = module.run, name: str = module.__name__) -> Any:
            if len(runs) == breaks_at:
                raise KeyboardInterrupt
            runs.append(name)
            return real(*arguments)

        monkeypatch.setattr(module, "run", run)
    monkeypatch.setattr(hardware, "usable_cores", lambda: 2)
    # Else a gap of the binding, which comes and goes, would be looked into.
    monkeypatch.setattr(binding_bench, "matching_options", lambda options, default, longest: default)

    def measured() -> list[speed.SpeedResult]:
        parts: list[speed.SpeedResult] = []
        result = speed.measure(
            base_gguf, settings, session=Session(toolchain), journal=Journal(tmp_path / "journal"),
            on_part=parts.append,
        )  # fmt: skip
        assert result == parts[-1]
        return parts

    with pytest.raises(KeyboardInterrupt):
        measured()
    assert len(runs) == all_runs - 1
    runs, breaks_at = [], None
    parts = measured()
    assert runs == [bench.__name__]
    assert [len(part.figures) for part in parts] == [2, 4]
    for figure in parts[-1].figures:
        assert figure.speed.batches == (2, 2)
        assert (figure.binding is not None) == (figure.n_gpu_layers == 0)
    runs = []
    again = measured()
    assert [replace(it, measured_at="") for it in again] == [replace(it, measured_at="") for it in parts]
    assert not runs


@pytest.mark.tool
def test_threads_are_found(toolchain: Toolchain, base_gguf: Path) -> None:
    result = speed.measure(base_gguf, replace(QUICK, threads="auto"), session=Session(toolchain))
    usable = hardware.usable_cores()
    assert 1 <= result.threads.prompt <= usable and 1 <= result.threads.generation <= usable
    tried = [trial.threads for trial in result.threads.trials]
    assert tried == (list(threads.thread_candidates(usable)) if usable > 1 else [])
    assert {figure.test: figure.threads for figure in result.figures} == {
        "prompt": result.threads.prompt, "generation": result.threads.generation,
    }  # fmt: skip


@pytest.mark.tool
def test_a_model_without_a_tokenizer_and_with_a_small_context(toolchain: Toolchain, tiny: GgufFile) -> None:
    settings = SpeedSettings(threads=1, precision=Precision(batch=1, most=2))
    result = speed.measure(tiny.path, settings, session=Session(toolchain))
    assert [str(figure.point) for figure in result.figures] == ["pp64", "tg64"]
    assert result.preset is None and all(figure.binding for figure in result.figures)


@pytest.mark.tool
def test_the_binding_that_fails_is_a_remark(
    toolchain: Toolchain, base_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        binding_bench, "default_options", lambda options, threads, prompt_threads: {"flash_attn": False}
    )
    result = speed.measure(base_gguf, replace(QUICK, binding=True, type_v="q4_0"), session=Session(toolchain))
    assert [figure.binding for figure in result.figures] == [None, None]
    assert any(remark.startswith("llama-cpp-python does not run the model:") for remark in result.remarks)


# --- the command -----------------------------------------------------------------------------------------


def ggq(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["bench", "speed", *map(str, arguments)])


@pytest.mark.tool
def test_the_table_fits_and_the_json_holds_everything(
    base_gguf: Path, rpc_server: str, tmp_path: Path
) -> None:
    record = tmp_path / "record.json"
    asked = [
        base_gguf, "-o", record, "-p", "16", "-n", "4,8", "-d", "0", "-d", "64", "-t", 1, "--reps", 2,
        "-ngl", "0,all", "--rpc", rpc_server, "--no-binding",
    ]  # fmt: skip
    shown = ggq(*asked)
    assert shown.exit_code == 0, shown.output
    table = shown.stdout.split(f"Layers on a GPU (ngl) are on RPC0 ({rpc_server}).")[0].splitlines()
    assert table[0].split() == ["model", "test", "depth", "ngl", "t/s", "±"]
    assert len([line for line in table if line.startswith("BF16")]) == 12
    assert max(map(len, table)) <= 80
    assert "Threads: 1 for prompts, 1 for generation." in shown.stdout
    found = json.loads(ggq(*asked, "--json").stdout)
    assert found["failures"] == []
    (model,) = found["models"]
    assert len(model["figures"]) == 12 and model["figures"][0]["speed"]["samples_ns"]
    [entry] = Record(record).entries
    assert entry.measurements.speed is not None and len(entry.measurements.speed.figures) == 12


@pytest.mark.tool
def test_one_bad_file_does_not_hide_the_others(base_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"hello")
    asked = [tmp_path / "bad.gguf", base_gguf, "-p", "16", "-n", 0, "-t", 1, "--reps", 2]
    shown = ggq(*asked)
    assert shown.exit_code == 1, shown.output
    assert "BF16" in shown.stdout and "Python t/s" in shown.stdout
    assert "bad.gguf" in shown.stderr and "not a GGUF" in shown.stderr
    [entry] = Record(tmp_path / FILE_NAME).entries
    assert entry.model.name == "BF16" and entry.measurements.kinds == ("speed",)
    as_json = ggq(*asked, "--no-binding", "--json")
    assert as_json.exit_code == 1, as_json.output
    found = json.loads(as_json.stdout)
    (failure,) = found["failures"]
    assert set(failure) == {"kind", "file_name", "what", "why", "next_step"}
    assert failure["file_name"] == "bad.gguf" and len(found["models"]) == 1


@pytest.mark.tool
@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (("-p", "600"), 1, "trained for 512"),
        (("-d", "512"), 1, "trained for 512"),
        (("-ngl", "1"), 2, "no GPU"),
        (("-ngl", "sweep"), 2, "no GPU"),
        (("--rpc", "127.0.0.1:1"), 1, "cannot be reached"),
        (("--rpc", "nonsense"), 2, "host:port"),
        (("--n-cpu-moe", "1"), 2, "no experts"),
        (("-ctv", "q4_0", "-fa", "off"), 2, "flash_attn"),
    ],
)
def test_problems_have_words(
    toolchain: Toolchain,
    base_gguf: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    exit_code: int,
    words: str,
) -> None:
    if arguments[0] == "-ngl" and bench.devices(toolchain):
        pytest.skip("a GPU is here")
    shown = ggq(base_gguf, "-o", tmp_path / "record.json", *arguments, "-t", 1)
    assert shown.exit_code == exit_code and words in " ".join(shown.stderr.split()), shown.output
    assert "next: " in shown.stderr and not shown.stdout

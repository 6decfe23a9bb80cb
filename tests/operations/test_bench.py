"""`ggq bench`: everything in one command and one record, and nothing lost on the way."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import measured
import pytest
from ctrl_c import heed_ctrl_c
from disks import tmpfs

import ggq
from ggq.errors import DiskFull, GgqError, OutputProblem, ToolFailed, UsageProblem
from ggq.llamacpp import bench as llama_bench
from ggq.llamacpp import memory as llama_memory
from ggq.llamacpp import perplexity
from ggq.llamacpp.toolchain import Toolchain
from ggq.measurement import record, speed, summary
from ggq.measurement.settings import BenchSettings, MemorySettings, QualitySettings, SpeedSettings
from ggq.measurement.throughput import Precision
from ggq.measurement.words import KINDS, Kind
from ggq.operations import bench as measure
from ggq.operations.request import Settings
from ggq.progress import Event, Notice
from ggq.session import Session
from ggq.system import process

pytestmark = [pytest.mark.tool, pytest.mark.usefixtures("shared_hollow_models")]

QUICK = BenchSettings(
    quality=QualitySettings(context=128, max_chunks=8, threads=2),
    speed=SpeedSettings(
        prompt_tokens=(16,), generated_tokens=(8,), binding=False, precision=Precision(batch=2, most=4)
    ),
    memory=MemorySettings(contexts=(256,), load_modes=("mmap",)),
)


@pytest.fixture(scope="module")
def made(example: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `ggq convert-and-quantize --keep-base` leaves it."""
    folder = tmp_path_factory.mktemp("made") / "out"
    settings = Settings(keep_base=True, threads=2, verify="off")
    ggq.convert_and_quantize(str(example), ["Q2_K", "Q8_0"], folder, settings)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "models")


def journals(folder: Path) -> list[Path]:
    return list(folder.glob(".ggq-bench.*"))


def run(*arguments: str | Path) -> process.Completed:
    command = [sys.executable, "-m", "ggq", "bench", *arguments]
    return process.run(command, check=False)


def test_a_folder_is_measured_in_everything(folder: Path, toolchain: Toolchain) -> None:
    done = measure.bench([folder], QUICK, session=Session(toolchain))
    assert not done.failures
    assert [entry.model.name for entry in done.entries] == ["BF16", "Q2_K", "Q8_0"]
    assert all(entry.measurements.kinds == KINDS for entry in done.entries)
    # The text beside the checkpoint was found through the manifest.
    assert done.quality is not None and done.quality.text.path.name == "heldout.txt"
    rows = summary.rows(done.entries)
    assert [row.is_base for row in rows] == [True, False, False]
    for row in rows:
        assert row.perplexity and row.prompt_tokens_per_s and row.generation_tokens_per_s
        assert row.ram_bytes and row.ram_bytes > row.file_bytes / 2
        assert (row.mean_kld is None) == row.is_base
    stored = json.loads(done.record.read_text(encoding="utf-8"))
    assert done.record == folder / "ggq-bench.json" and stored["schema_version"] == 1
    assert str(folder) not in done.record.read_text(encoding="utf-8"), "a folder is in the record"
    assert not journals(folder) and not (folder / ".ggq-partial").exists()


def test_records_are_merged_by_file_and_machine(folder: Path, toolchain: Toolchain) -> None:
    only_speed = BenchSettings(kinds=("speed",), speed=QUICK.speed)
    only_memory = BenchSettings(kinds=("memory",), memory=QUICK.memory)
    one, other = folder / "tiny-llama-Q8_0.gguf", folder / "tiny-llama-Q2_K.gguf"
    measure.bench([one], only_speed, session=Session(toolchain))
    measure.bench([other], only_speed, session=Session(toolchain))
    done = measure.bench([one], only_memory, session=Session(toolchain))
    [entry] = done.entries
    assert set(entry.measurements.kinds) == {"speed", "memory"}
    kept = record.Record(done.record).entries
    assert {item.model.name: set(item.measurements.kinds) for item in kept} == {
        "Q8_0": {"speed", "memory"}, "Q2_K": {"speed"},
    }  # fmt: skip
    # Another machine's figures of the same file stand beside these.
    there = record.Record(done.record)
    subject = measure.model_file.of(one)  # type: ignore[attr-defined]
    speed_of_it = kept[0].measurements.speed
    assert speed_of_it is not None
    there.add(subject, replace(kept[0].environment, cpu="another"), speed_of_it)
    assert len(there.entries) == 3


def test_one_failure_does_not_lose_the_others(
    folder: Path, toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = speed.measure

    def fails_once(model: Path, *args: object, **options: object) -> object:
        if "Q2_K" in model.name:
            raise ToolFailed(["llama-bench"], -9, ["last words"])
        return real(model, *args, **options)

    monkeypatch.setattr(speed, "measure", fails_once)
    settings = BenchSettings(kinds=("speed",), speed=QUICK.speed)
    done = measure.bench([folder], settings, session=Session(toolchain))
    [failure] = done.failures
    assert (failure.kind, failure.file_name) == ("speed", "tiny-llama-Q2_K.gguf")
    assert "SIGKILL" in failure.error.what
    assert [found.name for found, _ in done.speed] == ["BF16", "Q8_0"]
    # The same command measures only what is missing.
    monkeypatch.setattr(speed, "measure", real)
    again = measure.bench([folder], settings, session=Session(toolchain))
    assert [found.name for found, _ in again.speed] == ["Q2_K"]
    assert not again.failures and len(again.entries) == 3


def test_a_bad_file_in_a_folder_does_not_keep_the_others_from_being_measured(
    folder: Path, toolchain: Toolchain, stories: Path
) -> None:
    (folder / "broken-Q4_0.gguf").write_bytes(b"GGUF and nothing else")
    settings = Settings(keep_base=False, threads=2, verify="off")
    ggq.convert_and_quantize(str(stories), ["Q8_0"], folder, settings)
    heard: list[Event] = []
    quick = BenchSettings(kinds=("quality",), quality=QUICK.quality)
    done = measure.bench(
        [folder, folder / "tiny-llama-Q2_K.gguf"], quick, session=Session(listener=heard.append)
    )
    [failure] = done.failures
    assert (failure.kind, failure.file_name) == ("file", "broken-Q4_0.gguf")
    # The other family shares the folder and the type, and is left out with a word.
    assert done.quality is not None
    assert [model.name for model in done.quality.models] == ["Q2_K", "tiny-llama-Q8_0"]
    words = [event.text for event in heard if isinstance(event, Notice)]
    assert any("stories260K-Q8_0.gguf was not made from" in text for text in words)


def test_a_model_that_fails_leaves_the_others_their_quality(
    folder: Path, toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = perplexity.divergence

    def fails(tools: Toolchain, model: Path, *args: object, **options: object) -> object:
        if "Q2_K" in model.name:
            raise ToolFailed(["llama-perplexity"], -6, ["last words"])
        return real(tools, model, *args, **options)

    monkeypatch.setattr(perplexity, "divergence", fails)
    settings = BenchSettings(kinds=("quality",), quality=QUICK.quality)
    done = measure.bench([folder], settings, session=Session(toolchain))
    assert done.quality is not None and [model.name for model in done.quality.models] == ["Q8_0"]
    [failure] = done.failures
    assert (failure.kind, failure.file_name) == ("quality", "Q2_K") and "SIGABRT" in failure.error.what


def test_a_sweep_stays_in_the_record_when_one_of_its_points_is_measured_again(
    folder: Path, toolchain: Toolchain
) -> None:
    one = folder / "tiny-llama-Q8_0.gguf"
    for depths in ((0, 64), (0,)):
        again = BenchSettings(kinds=("speed",), speed=replace(QUICK.speed, depths=depths))
        done = measure.bench([one], again, session=Session(toolchain))
    [entry] = done.entries
    assert entry.measurements.speed is not None
    assert sorted((figure.test, figure.depth_tokens) for figure in entry.measurements.speed.figures) == [
        ("generation", 0), ("generation", 64), ("prompt", 0), ("prompt", 64),
    ]  # fmt: skip


def test_where_nothing_can_be_measured_the_error_comes_through(folder: Path, toolchain: Toolchain) -> None:
    settings = BenchSettings(kinds=("speed",), speed=SpeedSettings(depths=(100_000,)))
    with pytest.raises(UsageProblem):
        measure.bench([folder / "tiny-llama-Q8_0.gguf"], settings, session=Session(toolchain))


def test_quality_needs_a_base(folder: Path, toolchain: Toolchain) -> None:
    settings = BenchSettings(kinds=("quality",))
    with pytest.raises(UsageProblem, match="not measured"):
        measure.bench([folder / "tiny-llama-Q8_0.gguf"], settings, session=Session(toolchain))


@pytest.mark.parametrize("content", ["", "[]", '{"kind": "ggq-bench", "schema_version": 99}', '{"kind": 1}'])
def test_a_foreign_record_is_not_overwritten(folder: Path, toolchain: Toolchain, content: str) -> None:
    (folder / "ggq-bench.json").write_text(content)
    with pytest.raises(OutputProblem, match="not a record"):
        measure.bench([folder], QUICK, session=Session(toolchain))
    assert (folder / "ggq-bench.json").read_text() == content


@pytest.mark.parametrize("target", ["nothing-there.gguf", "empty"])
def test_targets_that_are_nothing(tmp_path: Path, toolchain: Toolchain, target: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "nothing.gguf").write_bytes(b"")
    with pytest.raises(GgqError):
        measure.bench([str(tmp_path / target)], QUICK, session=Session(toolchain))


def test_a_checkpoint_is_made_and_measured(
    example: Path, tmp_path: Path, toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = BenchSettings(kinds=("quality",), quality=QUICK.quality)
    done = measure.bench([example], settings, preset_names=["Q4_0"], session=Session(toolchain))
    assert [entry.model.name for entry in done.entries] == ["BF16", "Q4_0"]
    assert done.record == tmp_path / "tiny-llama" / "ggq-bench.json"


def test_the_commands_show_and_store(folder: Path, tmp_path: Path) -> None:
    quality = [folder / f"tiny-llama-{name}.gguf" for name in ("BF16", "Q2_K", "Q8_0")]
    plain = run("quality", *quality, "--chunks", "4", "-c", "128")
    assert plain.returncode == 0 and any("mean KLD" in line for line in plain.stdout)
    assert all(len(line) <= 80 for line in plain.stdout)
    listed = run(quality[2], "--quick", "--csv", "--plot", tmp_path / "plot.svg")
    [row] = csv.DictReader(io.StringIO("\n".join(listed.stdout)))
    assert row["preset"] == "Q8_0" and listed.returncode == 0
    # Quality was measured by the first command, and is in the record still.
    assert (tmp_path / "plot.svg").read_text().lstrip().startswith("<?xml")
    stored = json.loads((folder / "ggq-bench.json").read_text())
    assert set(stored["entries"][2]["measurements"]) == set(KINDS)


def test_ctrl_c_keeps_what_was_measured(folder: Path) -> None:
    command = [sys.executable, "-m", "ggq", "bench", "speed", folder, "--no-binding"]
    with subprocess.Popen(
        [str(part) for part in command], stderr=subprocess.PIPE, preexec_fn=heed_ctrl_c, env=os.environ
    ) as child:
        deadline = time.monotonic() + 120
        while not (folder / "ggq-bench.json").exists():
            assert time.monotonic() < deadline and child.poll() is None
            time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        _, words = child.communicate(timeout=60)
    assert child.returncode == 130 and b"resumes" in words
    assert len(record.Record(folder / "ggq-bench.json").entries) >= 1
    assert journals(folder)


def test_ctrl_c_in_the_middle_of_a_file_keeps_its_batches(folder: Path) -> None:
    model = folder / "tiny-llama-Q8_0.gguf"
    command = [
        sys.executable, "-m", "ggq", "bench", "speed", str(model), "--no-binding",
        "-p", "16", "-n", "8", "--reps", "6",
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, preexec_fn=heed_ctrl_c, env=os.environ) as child:
        deadline = time.monotonic() + 120
        while sum(len(batches(path)) for path in journals(folder)) < 2:
            assert time.monotonic() < deadline and child.poll() is None
            time.sleep(0.02)
        child.send_signal(signal.SIGINT)
        _, words = child.communicate(timeout=60)
    assert child.returncode == 130 and b"resumes" in words
    [journal] = journals(folder)
    before = batches(journal)
    assert not (folder / "ggq-bench.json").exists(), "the test came too late"
    assert run(*command[4:]).returncode == 0
    [entry] = record.Record(folder / "ggq-bench.json").entries
    assert entry.measurements.speed is not None
    after = [figure.speed.samples_ns for figure in entry.measurements.speed.figures]
    assert len(after) == 2 and not journals(folder)
    assert all(any(samples[: len(batch)] == batch for samples in after) for batch in before)


def batches(journal: Path) -> list[tuple[int, ...]]:
    """The samples of llama-bench that a journal has so far."""
    lines = [line for line in journal.read_text().splitlines() if line.endswith("}")]
    values = [json.loads(line)["value"] for line in lines]
    return [tuple(value[0]["samples_ns"]) for value in values if value is not True]


@pytest.mark.parametrize("kind", ["speed", "memory"])
def test_a_disk_that_was_full_when_the_record_was_written(
    folder: Path, tmp_path: Path, toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    """The words promise that the same command resumes."""
    settings = BenchSettings(kinds=(kind,), speed=QUICK.speed, memory=QUICK.memory)
    model = folder / "tiny-llama-Q8_0.gguf"
    with tmpfs(tmp_path / "small", "size=1m") as small:
        target = small / "record.json"
        # Another machine's entry, of which there is no room for a second copy, though for a journal.
        there = record.Record(target)
        found = measure.model_file.of(model)  # type: ignore[attr-defined]
        large = replace(measured.speed("Q8_0", []), remarks=("x" * 300_000,))
        there.add(found, replace(measured.ENVIRONMENT, cpu="another"), large)
        there.save()
        (small / "ballast").write_bytes(bytes(500_000))

        def once_more() -> measure.BenchResult:
            return measure.bench([model], settings, output=target, session=Session(toolchain))

        with pytest.raises(DiskFull, match="run the same command again: it resumes"):
            once_more()
        assert journals(small) and len(record.Record(target).entries) == 1
        (small / "ballast").unlink()
        with monkeypatch.context() as patch:
            for module, name in ((llama_bench, "run"), (llama_memory, "fill_context")):
                patch.setattr(module, name, lambda *arguments: pytest.fail("measured again"))
            done = once_more()
        assert not done.failures and not journals(small)
        [entry] = done.entries
        assert entry.measurements.kinds == (kind,) and len(record.Record(target).entries) == 2

"""What ggq 0.1.0 wrote is read with the same values."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ggq.cli.output import plain
from ggq.llamacpp.bench import BenchResult
from ggq.llamacpp.binding_bench import Timing
from ggq.llamacpp.memory import FilledContext
from ggq.llamacpp.perplexity import Divergence
from ggq.measurement import compare, record, summary, tables
from ggq.measurement.model_file import Subject
from ggq.measurement.settings import (
    BenchSettings,
    MemorySettings,
    Placement,
    QualitySettings,
    SpeedSettings,
)
from ggq.measurement.throughput import Precision
from ggq.measurement.words import Kind
from ggq.operations import bench_journal
from ggq.records.journal import Journal
from ggq.records.manifest import Manifest
from ggq.records.memo import Memo
from ggq.session import Session


@pytest.fixture
def golden(data: Path) -> Path:
    return data / "golden"


def raw(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_record_has_its_figures(golden: Path) -> None:
    rows = summary.rows(record.Record(golden / "bench.json").entries)
    assert tables.csv_text(rows) + "\n" == (golden / "bench.csv").read_text(encoding="utf-8")
    assert tables.markdown(rows) + "\n" == (golden / "bench.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["bench.json", "bench-unsettled.json"])
def test_a_record_that_is_written_again_loses_nothing(golden: Path, tmp_path: Path, name: str) -> None:
    again = record.Record(Path(shutil.copy(golden / name, tmp_path)))
    again.save()
    before, after = raw(golden / name), raw(tmp_path / name)
    assert missing(before, after) == []
    # What is new: the base's perplexity on all rounds together.
    new = missing(after, before)
    assert new and all(where.endswith(".quality.base_perplexity") for where in new)


def missing(wanted: Any, found: Any, where: str = "") -> list[str]:
    """Where ``found`` lacks a part of ``wanted``, or has another one; None may be left out."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        return [
            place
            for name, value in wanted.items()
            if value is not None or name in found
            for place in (
                missing(value, found[name], f"{where}.{name}") if name in found else [f"{where}.{name}"]
            )
        ]
    if isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        pairs = enumerate(zip(wanted, found, strict=True))
        return [place for index, (a, b) in pairs for place in missing(a, b, f"{where}[{index}]")]
    return [] if wanted == found else [where]


def test_records_are_compared_as_they_were(golden: Path) -> None:
    one, other = (record.load(golden / name) for name in ("bench-unsettled.json", "bench.json"))
    found, before = plain(compare.compare(one, other)), raw(golden / "compare.json")
    assert len(found) == len(before)
    for now, then in zip(found, before, strict=True):
        same = ["name", "matched_by", "figure", "one", "other"]
        if now["figure"] in ("perplexity", "mean_kld", "same_top"):
            # On more pieces of the text the one than the other: no longer compared.
            assert now["note"] == "measured on different pieces of the text, 8 and 32 chunks"
            assert now["ratio"] is now["noise"] is None
        else:
            same += ["ratio", "noise", "beyond_noise", "note"]
        assert {name: now[name] for name in same} == {name: then[name] for name in same}


def test_the_journal_of_a_broken_run_is_found_again(golden: Path) -> None:
    """Under the name and the keys that ggq 0.1.0 gave it for the same command."""
    entries = record.Record(golden / "bench.json").entries
    (entry,) = (it for it in entries if it.model.name == "Q8_0")
    subject = Subject(**vars(entry.model), path=Path("stories260K-Q8_0.gguf"))
    speed = SpeedSettings(prompt_tokens=(16,), generated_tokens=(8,), threads=1, precision=Precision(most=6))
    on_cpu = Placement(0)
    memory = MemorySettings(contexts=(128, 256), placement=on_cpu)
    rest = BenchSettings(quality=QualitySettings(placement=on_cpu), memory=MemorySettings(placement=on_cpu))
    assert entry.environment.id == entry.environment_id
    session = Session()
    for kind, settings, name in ((Kind.SPEED, speed, "8ec58c1877bb"), (Kind.MEMORY, memory, "ffa2286cbbcb")):
        asked = replace(rest, kinds=(kind,), **{kind.value: settings})
        found = bench_journal.file_name(
            Path("/tmp/gold/j.json"), [subject], asked, session, entry.environment_id
        )
        assert found == f".ggq-bench.{name}.partial.jsonl"
        key = bench_journal.key(kind, subject, settings, session, entry.environment_id)
        lines = (golden / f"journal-{kind}.jsonl").read_text(encoding="utf-8").splitlines()
        stored = [json.loads(json.loads(line)["key"]) for line in lines if line]
        assert stored
        for it in stored:
            assert {name: it[name] for name in key} == json.loads(json.dumps(key))


KINDS: dict[str, dict[str, Any]] = {
    "speed": {"llama-bench": tuple[BenchResult, ...], "binding": tuple[tuple[Timing, ...], ...]},
    "memory": {"load": FilledContext},
    "quality": {"what": Divergence},
}


@pytest.mark.parametrize("name", KINDS)
def test_a_journal_has_what_was_measured(golden: Path, name: str) -> None:
    path = golden / f"journal-{name}.jsonl"
    journal = Journal(path)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    found: list[Any] = []
    for line in lines:
        key = json.loads(line["key"])
        for word, kind in KINDS[name].items():
            if word in key and key[word] != "ground":
                found.append(journal.get(key, kind))
                assert found[-1] is not None
    assert len(found) == {"speed": 3, "memory": 1, "quality": 4}[name]
    first = found[0]
    if isinstance(first, Divergence):
        assert (first.perplexity.value, first.perplexity.standard_error) == (121.735657, 43.938558)
        assert (first.max_kld, first.same_top.value) == (2.819603, 0.68548)
    elif isinstance(first, FilledContext):
        assert first.buffers[0].name == "CPU_Mapped" and first.buffers[0].size_bytes == 325059
        assert first.peaks.resident_bytes == lines[0]["value"]["peaks"]["resident_bytes"]
    else:
        [result] = first
        assert (result.prompt_tokens, result.threads, result.build_commit) == (16, 1, "0c1e57098")
        assert list(result.samples_ns) == lines[0]["value"][0]["samples_ns"]


def test_a_manifest_knows_its_files(golden: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(golden / "manifest.json", tmp_path / "stories260K.ggq.json"))
    manifest = Manifest(path)
    assert manifest.model["folder"] == "models/stories260K"
    assert {name for step in manifest.steps.values() for name in (it.name for it in step.outputs)} == {
        "stories260K-F32.gguf", "stories260K-Q4_0.gguf", "stories260K-Q8_0.gguf",
    }  # fmt: skip
    assert manifest.knows("87d1c799656155dc4a4d485c03ae2e1ae3fc4769ef022e01ce195c1fb8316860")
    manifest.choose("a", "Q4_0")
    assert raw(path) == {**raw(golden / "manifest.json"), "chosen_presets": {"a": "Q4_0"}}


@pytest.mark.parametrize("name", ["account", "speed"])
def test_a_memo_has_its_answers(golden: Path, tmp_path: Path, name: str) -> None:
    file = Path(shutil.copy(golden / f"memo-{name}.json", tmp_path))
    owner, answers = raw(file)["owner"], raw(file)["answers"]
    other = Memo(file, {**owner, "cpu": "another"})
    memo = Memo(file, owner)
    assert answers and all(question in memo and question not in other for question in answers)
    memo.put("a new one", 1)
    memo.save()
    assert raw(file)["answers"] == {**answers, "a new one": 1}

"""The manifest: what counts as done, what is ours, and what a damaged file says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ggq.errors import OutputProblem
from ggq.records.manifest import Manifest, OutputFile, StepRecord

INPUTS = {"config.json": "aa"}
OPTIONS = {"outtype": "bf16"}
TOOL = "ggq 0, llama.cpp 1234567"


def recorded(folder: Path, content: bytes = b"weights") -> Manifest:
    """A manifest of one step whose only output is there."""
    (folder / "m.gguf").write_bytes(content)
    manifest = Manifest(folder / "m.ggq.json")
    output = OutputFile.of(folder / "m.gguf")
    manifest.record("convert", StepRecord(INPUTS, OPTIONS, TOOL, (output,), 1.5, 1 << 20, {"cosine": 1.0}))
    return manifest


def test_a_record_survives_being_written_and_read(tmp_path: Path) -> None:
    written = recorded(tmp_path)
    read = Manifest(tmp_path / "m.ggq.json")
    assert read.steps == written.steps
    assert read.outputs_whole("convert")


def test_a_chosen_preset_is_kept_by_model(tmp_path: Path) -> None:
    manifest = recorded(tmp_path)
    manifest.choose("org/m", "Q4_K_M")
    manifest.record("convert", StepRecord(INPUTS, OPTIONS, TOOL, (), 1.0))
    read = Manifest(manifest.path)
    assert read.chosen_presets == {"org/m": "Q4_K_M"} and read.steps == manifest.steps


def test_a_manifest_from_before_presets_were_chosen_is_read(tmp_path: Path) -> None:
    manifest = recorded(tmp_path)
    written = json.loads(manifest.path.read_text())
    del written["chosen_presets"]
    manifest.path.write_text(json.dumps(written))
    read = Manifest(manifest.path)
    assert read.steps == manifest.steps and read.chosen_presets == {}


@pytest.mark.parametrize(
    "inputs, options, tool",
    [
        ({"config.json": "bb"}, OPTIONS, TOOL),
        ({**INPUTS, "new.json": "cc"}, OPTIONS, TOOL),
        (INPUTS, {"outtype": "f16"}, TOOL),
        (INPUTS, OPTIONS, "ggq 0, llama.cpp 7654321"),
    ],
)
def test_a_step_is_not_current_when_anything_changed(
    tmp_path: Path, inputs: dict[str, str], options: dict[str, str], tool: str
) -> None:
    manifest = recorded(tmp_path)
    assert manifest.current("convert", INPUTS, OPTIONS, TOOL)
    assert not manifest.current("convert", inputs, options, tool)


@pytest.mark.parametrize("content", [b"weighty", b"weight", b""])
def test_an_output_that_changed_is_not_whole(tmp_path: Path, content: bytes) -> None:
    manifest = recorded(tmp_path)
    (tmp_path / "m.gguf").write_bytes(content)
    assert not manifest.outputs_whole("convert")


def test_a_file_of_the_users_is_not_overwritten(tmp_path: Path) -> None:
    manifest = recorded(tmp_path)
    manifest.claim(("m.gguf", "new.gguf"), force=False)
    (tmp_path / "m.gguf").write_bytes(b"the user's own")
    with pytest.raises(OutputProblem, match="exists already") as raised:
        manifest.claim(("m.gguf",), force=False)
    assert "--force" in raised.value.next_step
    manifest.claim(("m.gguf",), force=True)


def test_a_file_that_a_later_record_replaces_is_still_ours(tmp_path: Path) -> None:
    # Killed between the new record and the new file's rename: the old file stands under the name.
    manifest = recorded(tmp_path)
    newer = OutputFile("m.gguf", 3, "ff" * 32)
    manifest.record("convert", StepRecord(INPUTS, {"outtype": "f16"}, TOOL, (newer,), 1.0))
    Manifest(manifest.path).claim(("m.gguf",), force=False)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"schema_version": 99}',
        '{"schema_version": 1, "steps": {"a": {"outputs": [1]}}}',
    ],
)
def test_a_damaged_manifest_is_met_with_words(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.ggq.json").write_text(text)
    with pytest.raises(OutputProblem) as raised:
        Manifest(tmp_path / "m.ggq.json")
    assert "Remove it" in raised.value.next_step


def test_units_are_in_the_names(tmp_path: Path) -> None:
    recorded(tmp_path)
    step = json.loads((tmp_path / "m.ggq.json").read_text())["steps"]["convert"]
    assert {"seconds", "peak_memory_bytes"} <= step.keys()
    assert step["outputs"][0].keys() == {"name", "file_bytes", "sha256"}

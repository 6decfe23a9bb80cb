"""What an earlier ggq wrote down is taken up: see tests/data/golden/README.md."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from outputs import digests

from ggq._version import __version__
from ggq.estimation import hollow_model as hollow_models
from ggq.estimation import timings
from ggq.estimation.estimator import Account
from ggq.estimation.hollow_model import HollowModel, hollow_model
from ggq.estimation.timings import Calibration
from ggq.gguf import file as gguf_file
from ggq.llamacpp import pin
from ggq.llamacpp.threads import ThreadChoice
from ggq.llamacpp.toolchain import BuildInfo, Toolchain
from ggq.operations.workspace import tool_name
from ggq.presets import catalogue
from ggq.records.manifest import Manifest
from ggq.session import Session
from ggq.system import files, hardware, places

VERSION, COMMIT = "0.1.0", "0c1e57098"
_AS_OF_THEN = "import ggq._version; ggq._version.__version__ = {!r}; from ggq.cli.main import main; main()"


@pytest.fixture
def golden(data: Path) -> Path:
    return data / "golden"


def ggq(*words: str | Path) -> dict[str, Any]:
    """What a command of the version that made the golden files says, as JSON."""
    command = [sys.executable, "-c", _AS_OF_THEN.format(VERSION), *map(str, words), "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def filled(file: Path, **words: str) -> None:
    text = file.read_text()
    for word, value in words.items():
        assert f"@{word}@" in text
        text = text.replace(f"@{word}@", value)
    file.write_text(text)


@pytest.fixture
def made(golden: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "made"
    shutil.copytree(golden / "made", folder)
    filled(folder / "tiny.ggq.json", CHECKPOINT=str(golden / "tiny"))
    return folder


def test_a_manifest_is_read_and_written_without_loss(made: Path) -> None:
    file = made / "tiny.ggq.json"
    before = json.loads(file.read_text())
    manifest = Manifest.of("tiny", made)
    assert [manifest.outputs_whole(step) for step in before["steps"]] == [True, True, True]
    assert list(manifest.chosen_presets.values()) == ["Q6_K"]
    manifest.choose("another", "Q8_0")
    after = json.loads(file.read_text())
    assert after.pop("chosen_presets").pop("another") == "Q8_0"
    before.pop("chosen_presets")
    assert after == before


@pytest.mark.tool
def test_the_files_of_a_manifest_are_not_made_again(golden: Path, made: Path, toolchain: Toolchain) -> None:
    filled(made / "tiny.ggq.json", TOOL=tool_name(toolchain).replace(__version__, VERSION))
    before = {file.name: (file.stat().st_mtime_ns, files.sha256_file(file)) for file in made.glob("*.gguf")}
    words: list[str | Path] = [
        "convert-and-quantize",
        golden / "tiny",
        "--preset",
        "Q4_0,Q6_K",
        "--keep-base",
    ]
    ahead = ggq(*words, "--outdir", made, "--dry-run")
    assert [file["made"] for file in ahead["files"]] == [True, True] and ahead["base"] is None
    done = ggq(*words, "--outdir", made)
    assert [file["reused"] for file in done["files"]] == [True, True]
    after = {file.name: (file.stat().st_mtime_ns, files.sha256_file(file)) for file in made.glob("*.gguf")}
    assert after == before


def this_boot() -> str:
    linux = Path("/proc/sys/kernel/random/boot_id")
    return linux.read_text().strip() if linux.exists() else str(int(psutil.boot_time()))


@pytest.mark.tool
def test_unfinished_work_goes_on_where_it_was(golden: Path, tmp_path: Path) -> None:
    of_this_pin()
    out = tmp_path / "out"
    kept = out / ".ggq-sweep-tiny"
    shutil.copytree(golden / "kept", kept)
    filled(kept / "journal", BOOT=this_boot())
    finished = [json.loads(line) for line in (kept / "journal").read_text().splitlines()[1:] if line]
    # What is finished is not looked at again: a byte that differs there stays as it is.
    untouched = kept / "tiny-Q4_0.gguf"
    [tensor] = [it for it in gguf_file.read(untouched).tensors if it.name == finished[0]]
    with untouched.open("r+b") as stream:
        stream.seek(tensor.offset_bytes)
        first = stream.read(1)[0]
        stream.seek(tensor.offset_bytes)
        stream.write(bytes([first ^ 1]))
    done = ggq("quantize", golden / "made" / "tiny-BF16.gguf", "--preset", "Q8_0,Q4_0", "--outdir", out)
    assert not any(file["reused"] for file in done["files"]) and not kept.exists()
    step = Manifest.of("tiny", out).steps["quantize Q4_0"]
    pairs = step.findings["computed_pairs"] + step.findings["kept_pairs"]
    assert 0 < len(finished) <= step.findings["kept_pairs"] < pairs
    content = bytearray((out / "tiny-Q4_0.gguf").read_bytes())
    assert content[tensor.offset_bytes] == first ^ 1
    content[tensor.offset_bytes] = first
    assert bytes(content) == (golden / "made" / "tiny-Q4_0.gguf").read_bytes()


def of_this_pin() -> None:
    assert pin.pin().commit == COMMIT, "the golden files are of another llama.cpp: see its README.md"


@pytest.fixture
def remembered(
    golden: Path, toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, HollowModel]:
    """The cache folder of a hollow model, as if this machine had made it, and the model that is found."""
    of_this_pin()
    (source,) = (golden / "hollow").iterdir()
    folder = places.cache() / "hollow" / source.name
    shutil.copytree(source, folder)
    build = toolchain.build
    owner: Mapping[str, Any] = {
        "cpu": hardware.cpu_name(),
        "instruction_sets": list(hardware.instruction_sets()),
        "usable_cores": hardware.usable_cores(),
        "llama_cpp": toolchain.commit,
        "flags": list(build.cmake_flags) if build else None,
        "power": hardware.power_state(),
    }
    for name in ("account.json", "speed.json"):
        content = json.loads((folder / name).read_text())
        content["owner"] = {key: owner[key] for key in content["owner"]}
        (folder / name).write_text(json.dumps(content))
    monkeypatch.setattr(hollow_models, "__version__", VERSION)
    return folder, hollow_model(golden / "tiny", Session(toolchain))


@pytest.mark.tool
def test_a_hollow_model_and_what_was_asked_of_it_are_found(
    golden: Path, remembered: tuple[Path, HollowModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, hollow = remembered
    assert hollow.reused and hollow.folder == folder

    def refuse(*_: object) -> None:
        raise AssertionError("it was asked again")

    monkeypatch.setattr(HollowModel, "recipe", refuse)
    monkeypatch.setattr(gguf_file, "read_all", refuse)
    account = Account(hollow)
    assert account.facts().parameter_count == 35_488
    for name, file in (("Q6_K", "made/tiny-Q6_K.gguf"), ("Q8_0", "kept/tiny-Q8_0.gguf")):
        (preset,) = catalogue.load().resolve([name])
        size = account.size(preset)
        assert size.file_bytes == (golden / file).stat().st_size
        assert size.mostly_fell_back == (name == "Q6_K")


@pytest.mark.tool
def test_timings_are_found(
    remembered: tuple[Path, HollowModel], toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = remembered
    answers = json.loads((folder / "speed.json").read_text())["answers"]
    monkeypatch.setattr(timings, "probe_s", lambda: answers["seconds of the probe"])
    kept = Calibration(folder / "speed.json", toolchain)
    keys = [key for key, answer in answers.items() if isinstance(answer, dict)]
    assert keys and all(key in kept for key in keys)
    for key in keys:
        assert kept[key].generation_s == tuple(answers[key]["generation_s"])
        assert kept[key].prompt_s == tuple(answers[key]["prompt_s"])

    def choose() -> ThreadChoice:
        raise AssertionError("they were chosen again")

    (threads,) = (key for key in answers if key.startswith("threads of"))
    assert kept.threads(threads, choose) == ThreadChoice(1, 1)


def test_a_build_is_known(golden: Path) -> None:
    found = BuildInfo.load(golden / "build.json")
    assert found is not None and (found.commit, found.backends) == (COMMIT, ("cpu", "rpc"))
    assert found.self_test["Q4_K_M"] == "ok" and "Q6_K" in found.quick_types
    assert found.cmake_flags[0] == "-DCMAKE_BUILD_TYPE=Release" and found.seconds > 0


def test_the_golden_files_are_whole(golden: Path) -> None:
    names = ["tiny-BF16.gguf", "tiny-Q4_0.gguf", "tiny-Q6_K.gguf"]
    steps = json.loads((golden / "made" / "tiny.ggq.json").read_text())["steps"].values()
    said = {output["name"]: output["sha256"] for step in steps for output in step["outputs"]}
    assert sorted(said) == names and {name: digests(golden / "made")[name] for name in names} == said

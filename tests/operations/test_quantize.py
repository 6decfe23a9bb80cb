"""The sweep in the main job: the same files as llama-quantize makes, and taken up where it was broken off."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from ctrl_c import heed_ctrl_c
from disks import tmpfs
from outputs import digests
from shared import Store, own

import ggq
from ggq.cli.main import cli
from ggq.errors import DiskFull, UsageProblem
from ggq.llamacpp.toolchain import Toolchain
from ggq.operations.request import Settings
from ggq.progress import Event, Notice
from ggq.quantization import one_pass
from ggq.records.manifest import Manifest
from ggq.session import Session
from ggq.system import files

pytestmark = pytest.mark.tool

KILLS = 6
# The i-quant makes it seconds, so that a test which looks on is in time.
LONG = ("k-quants", "IQ4_XS")


def finished(folder: Path) -> list[str]:
    """The tensors that an unfinished sweep has written down, in their order."""
    lines = []
    for journal in folder.glob(".ggq-sweep-*/journal"):
        for line in journal.read_text().splitlines()[1:]:
            try:
                lines.append(json.loads(line))
            except ValueError:
                continue  # empty, or cut short by a kill
    return lines


@pytest.fixture(scope="session")
def larger_base(
    toolchain: Toolchain, larger: Path, store: Store, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A model whose presets take a second or more."""
    base = store.converted(toolchain, larger, "bf16")
    return own(base, tmp_path_factory.mktemp("larger"), "larger-BF16.gguf")


def command(base: Path, outdir: Path, *more: str) -> list[str]:
    words = ["quantize", str(base), "--preset", ",".join(LONG), "-t", "1", "--outdir", str(outdir), *more]
    return [sys.executable, "-m", "ggq", *words]


def wait_for(child: subprocess.Popen[bytes], outdir: Path, count: int) -> None:
    """Until the sweep has finished so many tensors."""
    deadline = time.monotonic() + 120
    while len(finished(outdir)) < count:
        assert time.monotonic() < deadline and child.poll() is None
        time.sleep(0.005)


def test_both_engines_make_the_same_files(base_gguf: Path, tmp_path: Path) -> None:
    made = {}
    for engine in ("one-pass", "llama-quantize"):
        made[engine] = ggq.quantize(base_gguf, ["k-quants"], tmp_path / engine, Settings(engine=engine))
    assert digests(tmp_path / "one-pass") == digests(tmp_path / "llama-quantize")
    assert len(digests(tmp_path / "one-pass")) == 10
    names = tuple(file.preset for file in made["one-pass"].files)
    assert all(file.made_with == names for file in made["one-pass"].files)
    assert all(file.made_with == () for file in made["llama-quantize"].files)
    steps = Manifest(made["one-pass"].manifest).steps
    assert {step.findings["engine"] for step in steps.values()} == {"one-pass"}
    assert len({step.seconds for step in steps.values()}) == 1, "they were made in one pass"
    assert not list((tmp_path / "one-pass").glob(".ggq-*")), "unfinished work was left"
    # The engine is no part of the work: what one has made the other takes as it is.
    again = ggq.quantize(base_gguf, ["k-quants"], tmp_path / "one-pass", Settings(engine="llama-quantize"))
    assert all(file.reused for file in again.files)


def test_killed_in_the_middle_it_goes_on_with_the_next_tensor(larger_base: Path, tmp_path: Path) -> None:
    subprocess.run(command(larger_base, tmp_path / "undisturbed", "-q"), check=True)
    expected = digests(tmp_path / "undisturbed")
    folder = tmp_path / "killed"
    before: list[str] = []
    for kill in range(KILLS):
        with subprocess.Popen(command(larger_base, folder), stderr=subprocess.DEVNULL) as child:
            wait_for(child, folder, len(before) + 1 + kill)
            os.kill(child.pid, signal.SIGKILL)
        assert not digests(folder), "a partial file under a final name"
        after = finished(folder)
        assert after[: len(before)] == before and len(after) == len(set(after)), "a tensor was made twice"
        before = after
    subprocess.run(command(larger_base, folder, "-q"), check=True)
    assert digests(folder) == expected
    assert sorted(path.suffix for path in folder.iterdir()) == sorted([".gguf"] * len(expected) + [".json"])
    step = Manifest(folder / "larger.ggq.json").steps["quantize Q4_K_M"]
    assert step.findings["kept_pairs"] >= len(before)


def test_ctrl_c_keeps_the_finished_tensors(larger_base: Path, tmp_path: Path) -> None:
    words = command(larger_base, tmp_path)
    with subprocess.Popen(words, stderr=subprocess.PIPE, preexec_fn=heed_ctrl_c, env=os.environ) as child:
        wait_for(child, tmp_path, 5)
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=60)
    assert child.returncode == 130 and b"resumes" in said
    assert not digests(tmp_path) and len(finished(tmp_path)) >= 5
    made = ggq.quantize(larger_base, LONG, tmp_path, Settings(threads=1))
    assert Manifest(made.manifest).steps["quantize Q2_K"].findings["kept_pairs"] >= 5


def test_what_was_written_down_but_not_published_is_published(
    base_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish, calls = files.publish, []

    def stop(partial: Path, target: Path, *, durable: bool = True) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        publish(partial, target, durable=durable)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(files, "publish", stop)
        ggq.quantize(base_gguf, ["Q4_0", "Q5_0", "Q8_0"], tmp_path)
    assert len(digests(tmp_path)) == 1
    with monkeypatch.context() as patch:
        patch.setattr(one_pass, "quantize_in_one_pass", None)  # it is not called
        made = ggq.quantize(base_gguf, ["Q4_0", "Q5_0", "Q8_0"], tmp_path)
    assert all(file.reused for file in made.files) and len(digests(tmp_path)) == 3
    assert not list(tmp_path.glob(".ggq-*"))


def test_what_the_sweep_cannot_make_llama_quantize_makes_beside_it(
    base_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Event] = []
    real = one_pass.obstacle
    monkeypatch.setattr(
        one_pass,
        "obstacle",
        lambda toolchain, base, recipe: (
            "It is a Friday." if recipe.preset.name == "Q5_0" else real(toolchain, base, recipe)
        ),
    )
    made = ggq.quantize(base_gguf, ["Q4_0", "Q5_0", "Q8_0"], tmp_path, session=Session(listener=heard.append))
    assert [file.made_with for file in made.files] == [("Q4_0", "Q8_0"), (), ("Q4_0", "Q8_0")]
    said = [event.text for event in heard if isinstance(event, Notice)]
    assert "llama-quantize makes Q5_0: It is a Friday." in said
    with pytest.raises(UsageProblem, match="cannot make Q5_0"):
        ggq.quantize(base_gguf, ["Q5_0"], tmp_path / "other", engine="sweep")


def test_an_unknown_llama_cpp_makes_all_by_itself(
    base_gguf: Path, toolchain: Toolchain, tmp_path: Path
) -> None:
    unknown = replace(toolchain, commit=None)
    heard: list[Event] = []
    made = ggq.quantize(
        base_gguf, ["Q4_0", "Q8_0"], tmp_path, session=Session(toolchain=unknown, listener=heard.append)
    )
    assert [file.made_with for file in made.files] == [(), ()]
    assert any(isinstance(event, Notice) and "makes Q4_0, Q8_0: " in event.text for event in heard)


def test_another_work_takes_the_place_of_an_unfinished_one(larger_base: Path, tmp_path: Path) -> None:
    with subprocess.Popen(command(larger_base, tmp_path), stderr=subprocess.DEVNULL) as child:
        wait_for(child, tmp_path, 5)
        os.kill(child.pid, signal.SIGKILL)
    ggq.quantize(larger_base, ["Q8_0"], tmp_path)
    assert not list(tmp_path.glob(".ggq-*")) and len(digests(tmp_path)) == 1


def test_a_disk_without_room_is_refused_before_anything_is_written(base_gguf: Path, tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", "size=2m") as small:
        with pytest.raises(DiskFull, match="not enough disk"):
            ggq.quantize(base_gguf, ["k-quants"], small / "out")
        assert not list((small / "out").iterdir())


def test_a_dry_run_tells_the_engine(base_gguf: Path) -> None:
    words = ["quantize", str(base_gguf), "--preset", "q4_k_m,iq2_xs", "--dry-run", "--json"]
    for engine in ("auto", "llama-quantize"):
        result = CliRunner().invoke(cli, [*words, "--engine", engine])
        engines = {file["preset"]: file["engine"] for file in json.loads(result.stdout)["files"]}
        assert engines == {"Q4_K_M": "one-pass" if engine == "auto" else engine, "IQ2_XS": None}

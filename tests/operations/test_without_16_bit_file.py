"""Checkpoint -> presets with no base GGUF on the disk: the same files, no more disk, no orphan, no hang."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from ctrl_c import heed_ctrl_c
from disks import tmpfs
from outputs import converters, digests, finished, watched

import ggq
from ggq.errors import CheckpointProblem, ConversionProblem, DiskFull
from ggq.llamacpp.toolchain import Toolchain
from ggq.operations.make_files import MakeFiles
from ggq.operations.request import Settings
from ggq.progress import Event, Notice, Step
from ggq.records.manifest import Manifest
from ggq.session import Session

pytestmark = [pytest.mark.tool, pytest.mark.usefixtures("shared_hollow_models")]

STREAMED = Settings(verify="off")
# The i-quant makes it seconds, so that a test which looks on is in time.
LONG = ("k-quants", "IQ4_XS")
SLOWLY = replace(STREAMED, threads=1, max_memory_bytes=1 << 16)


def at_first_step(act: Callable[[], None]) -> Callable[[Event], None]:
    """A listener that acts when the sweep has written something."""
    acted: list[bool] = []

    def listen(event: Event) -> None:
        if isinstance(event, Step) and event.name.startswith("quantize") and not acted:
            acted.append(True)
            act()

    return listen


@pytest.fixture(scope="module")
def expected(larger: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files of ``larger`` by the converter and llama-quantize, one step after the other."""
    folder = tmp_path_factory.mktemp("two-steps")
    by_tool = replace(STREAMED, engine="llama-quantize")
    ggq.convert_and_quantize(str(larger), LONG, folder, by_tool)
    return digests(folder)


def test_the_files_are_those_of_two_steps_and_the_disk_holds_nothing_else(
    larger: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    with watched(tmp_path) as seen:
        made = ggq.convert_and_quantize(str(larger), LONG, tmp_path, STREAMED)
    assert digests(tmp_path) == expected
    assert len(made.files) == 11 and made.base is None
    step = Manifest(made.manifest).steps["convert"]
    assert step.outputs == () and step.findings["level"] == "off" and step.seconds > 0
    assert max(seen) <= 1.01 * sum(file.size.file_bytes for file in made.files), "the base was on the disk"


def test_a_second_run_makes_nothing_and_another_preset_is_made_alone(example: Path, tmp_path: Path) -> None:
    def run(*names: str, settings: Settings = STREAMED) -> list[bool]:
        made = ggq.convert_and_quantize(str(example), names, tmp_path, settings)
        return [file.reused for file in made.files]

    assert run("Q4_K_M") == [False]
    assert run("Q4_K_M") == [True]
    assert run("Q4_K_M", "Q8_0") == [True, False]
    # A base that becomes a file after all is the same base.
    kept = replace(STREAMED, keep_base=True)
    assert run("Q4_K_M", "Q8_0", "Q5_0", settings=kept) == [True, True, False]
    assert run("Q4_K_M", "Q8_0", "Q5_0", "Q6_K") == [True, True, True, False]
    assert (tmp_path / "tiny-llama-BF16.gguf").exists()


def test_where_the_disk_has_no_room_for_the_base_it_is_done_without(example: Path, tmp_path: Path) -> None:
    heard: list[Event] = []
    with tmpfs(tmp_path / "small", "size=5m") as small:
        with pytest.raises(DiskFull):  # the whole check was asked for
            ggq.convert_and_quantize(str(example), ["Q4_K_M"], small / "out", Settings(verify="full"))
        made = ggq.convert_and_quantize(
            str(example), ["Q4_K_M"], small / "out", session=Session(listener=heard.append)
        )
        assert made.base is None and made.files[0].made_with == ("Q4_K_M",)
        assert made.verification["level"] == "off"
        said = [event.text for event in heard if isinstance(event, Notice)]
        assert any("not checked" in text and "no room for a 16-bit GGUF" in text for text in said)
        heard.clear()
        ggq.convert_and_quantize(
            str(example), ["Q4_K_M"], small / "out", session=Session(listener=heard.append)
        )
        assert any(isinstance(it, Notice) and "--keep-base makes the 16-bit GGUF" in it.text for it in heard)
    ggq.convert_and_quantize(
        str(example), ["Q4_K_M"], tmp_path / "off", STREAMED, session=Session(listener=heard.append)
    )
    heard.clear()
    ggq.convert_and_quantize(
        str(example), ["Q4_K_M"], tmp_path / "off", STREAMED, session=Session(listener=heard.append)
    )
    assert not [it for it in heard if isinstance(it, Notice)], "nobody wants it checked"


def test_what_the_sweep_cannot_make_takes_two_steps(
    example: Path, toolchain: Toolchain, tmp_path: Path
) -> None:
    unknown = replace(toolchain, commit=None)
    made = ggq.convert_and_quantize(
        str(example), ["Q8_0"], tmp_path, STREAMED, session=Session(toolchain=unknown)
    )
    assert made.files[0].made_with == () and not converters()
    assert Manifest(made.manifest).steps["convert"].outputs


def command(model: Path, outdir: Path) -> list[str]:
    words = ["convert-and-quantize", str(model), "--preset", ",".join(LONG), "--verify", "off", "-t", "1"]
    return [sys.executable, "-m", "ggq", *words, "--outdir", str(outdir)]


def test_broken_off_in_the_middle_it_goes_on_and_leaves_no_orphan(
    larger: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    before: list[str] = []
    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGKILL):
        with subprocess.Popen(
            command(larger, tmp_path), stderr=subprocess.DEVNULL, preexec_fn=heed_ctrl_c, env=os.environ
        ) as child:
            deadline = time.monotonic() + 120
            while len(finished(tmp_path, "larger-llama")) < len(before) + 2:
                assert time.monotonic() < deadline and child.poll() is None
                time.sleep(0.005)
            below = psutil.Process(child.pid).children(recursive=True)
            child.send_signal(number)
            child.wait(timeout=30)
        assert below and not psutil.wait_procs(below, timeout=10)[1], "the converter lives on"
        assert not digests(tmp_path)
        after = finished(tmp_path, "larger-llama")
        assert after[: len(before)] == before and len(after) == len(set(after)), "a tensor was made twice"
        before = after
    made = ggq.convert_and_quantize(str(larger), LONG, tmp_path, STREAMED)
    assert Manifest(made.manifest).steps["quantize Q4_K_M"].findings["kept_pairs"] >= len(before)
    assert digests(tmp_path) == expected


def test_a_conversion_that_dies_is_told_in_its_own_words(larger: Path, tmp_path: Path) -> None:
    listen = at_first_step(lambda: [child.kill() for child in converters()] and None)
    with pytest.raises(ConversionProblem, match="was killed while it was converting"):
        ggq.convert_and_quantize(str(larger), LONG, tmp_path, SLOWLY, session=Session(listener=listen))
    assert not converters() and not digests(tmp_path)


def test_a_sweep_that_fails_ends_the_conversion(larger: Path, tmp_path: Path) -> None:
    def fail() -> None:
        assert converters(), "the test came too late"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ggq.convert_and_quantize(
            str(larger), LONG, tmp_path, SLOWLY, session=Session(listener=at_first_step(fail))
        )
    assert not converters()


def test_a_conversion_that_never_begins_is_told_at_once(example: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(example, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "architectures": ["NoSuchForCausalLM"]}))
    with pytest.raises(CheckpointProblem, match="does not know the architecture"):
        ggq.convert_and_quantize(str(model), ["Q4_K_M"], tmp_path / "out", STREAMED)


def test_a_sweep_that_was_whole_but_not_written_down_needs_no_data(
    example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MakeFiles, "_finish", stop)
        ggq.convert_and_quantize(str(example), ["Q4_0"], tmp_path, STREAMED)
    made = ggq.convert_and_quantize(str(example), ["Q4_0"], tmp_path, STREAMED)
    assert Manifest(made.manifest).steps["quantize Q4_0"].findings["computed_pairs"] == 0
    assert not converters()

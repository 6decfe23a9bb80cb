"""A file that changes while a run reads it: the run fails in words, and nothing of it is recorded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import ggq
from ggq.errors import GgqError, SourceChanged
from ggq.llamacpp.toolchain import Toolchain
from ggq.measurement.settings import BenchSettings
from ggq.operations import bench as measure
from ggq.progress import Event, Step
from ggq.quantization.imatrix import imatrix
from ggq.quantization.imatrix_settings import ImatrixSettings
from ggq.session import Session
from ggq.system import files
from ggq.system.unchanged import Unchanged


def overwrite(path: Path) -> None:
    """In place, same size, as `cp` does: the last byte becomes another."""
    with path.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        last = stream.read(1)
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([last[0] ^ 1]))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def swap(path: Path) -> None:
    """Renamed over by a file of the same content, size and time but for one byte."""
    before = path.stat()
    other = path.with_name("other")
    shutil.copyfile(path, other)
    overwrite(other)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


def disguise(path: Path) -> None:
    """Overwritten in place, and its time set back."""
    before = path.stat()
    overwrite(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES = (overwrite, truncate, swap, disguise, Path.unlink)


class Once:
    """A listener that changes a file when a step of a name is heard for the first time."""

    def __init__(self, step: str, change: Callable[[], object]) -> None:
        self._step = step
        self._change: Callable[[], object] | None = change

    def __call__(self, event: Event) -> None:
        if self._change and isinstance(event, Step) and event.name.startswith(self._step) and event.done:
            change, self._change = self._change, None
            change()


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(tmp_path: Path, change: Callable[[Path], object]) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1000))
    digests = {path: files.sha256_file(path)}
    reading = Unchanged([path], lambda: digests)
    reading.require()
    change(path)
    with pytest.raises(SourceChanged, match=str(path)):
        reading.require()


def test_a_touch_that_changes_nothing_is_none(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1000))
    reading = Unchanged([path], lambda: {path: files.sha256_file(path)})
    path.chmod(0o600)
    os.link(path, tmp_path / "link")
    reading.require()


def test_an_error_is_due_to_the_change(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1000))
    with pytest.raises(SourceChanged) as raised, Unchanged([path]).guard():
        path.unlink()
        raise GgqError("Something else.")
    assert isinstance(raised.value.__cause__, GgqError)


@pytest.fixture
def base(base_gguf: Path, tmp_path: Path) -> Path:
    return Path(shutil.copyfile(base_gguf, tmp_path / "tiny-BF16.gguf"))


@pytest.mark.tool
@pytest.mark.parametrize("engine", ["sweep", "llama-quantize"])
@pytest.mark.parametrize("change", CHANGES)
def test_quantize_makes_nothing_of_a_base_that_changes(
    base: Path, toolchain: Toolchain, engine: str, change: Callable[[Path], object]
) -> None:
    before = base.read_bytes()
    listener = Once("quantize", lambda: change(base))
    with pytest.raises(SourceChanged, match=r"tiny-BF16\.gguf"):
        ggq.quantize(
            base, ["Q4_K_M", "Q8_0"], engine=engine, threads=1, session=Session(toolchain, listener=listener),
        )  # fmt: skip
    left = {path.name for path in base.parent.iterdir()} - {base.name}
    assert not left
    # The same command works once the file is what it is to be.
    base.write_bytes(before)
    made = ggq.quantize(base, ["Q8_0"], engine=engine, session=Session(toolchain=toolchain))
    assert not made.files[0].reused


@pytest.mark.tool
def test_convert_makes_nothing_of_a_checkpoint_that_changes(
    example: Path, tmp_path: Path, toolchain: Toolchain
) -> None:
    folder = Path(shutil.copytree(example, tmp_path / "tiny"))
    weights = next(folder.glob("*.safetensors"))
    listener = Once("convert", lambda: overwrite(weights))
    with pytest.raises(SourceChanged, match="safetensors"):
        ggq.convert_and_quantize(
            str(folder), ["Q8_0"], tmp_path / "out", keep_base=True,
            session=Session(toolchain, listener=listener),
        )  # fmt: skip
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.tool
@pytest.mark.parametrize("which", ["base", "text"])
def test_a_matrix_of_what_changes_is_none(base: Path, toolchain: Toolchain, which: str) -> None:
    text = base.with_name("text.txt")
    text.write_text("Once upon a time there was a little dog. " * 200)
    changed = base if which == "base" else text
    settings = ImatrixSettings(chunks=6, context=64)
    with pytest.raises(SourceChanged, match=changed.name):
        imatrix(
            base,
            settings,
            text=text,
            session=Session(toolchain=toolchain, listener=Once("imatrix", lambda: overwrite(changed))),
        )
    assert {path.name for path in base.parent.iterdir()} == {base.name, text.name}


@pytest.mark.tool
def test_nothing_is_recorded_of_a_file_that_changes_while_it_is_measured(
    base: Path, toolchain: Toolchain
) -> None:
    ggq.quantize(base, ["Q8_0"], session=Session(toolchain=toolchain))
    made = base.with_name("tiny-Q8_0.gguf")
    text = base.with_name("text.txt")
    text.write_text("Once upon a time there was a little dog. " * 400)
    usual = BenchSettings()
    settings = replace(
        usual,
        kinds=("quality",),
        text=replace(usual.text, text=text),
        quality=replace(usual.quality, context=64, chunks=8),
    )
    with pytest.raises(SourceChanged, match="Q8_0"):
        measure.bench(
            [base, made],
            settings,
            session=Session(toolchain, listener=Once("quality", lambda: overwrite(made))),
        )
    assert not list(base.parent.glob("*bench*"))
    assert not list(base.parent.glob(".*bench*"))

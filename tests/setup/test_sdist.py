"""Fetching the pinned source: by the real pip, offline, from a small sdist with the real one's shape."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from ggq.errors import DiskFull, ToolchainProblem
from ggq.llamacpp.pin import Pin
from ggq.progress import Event, silent
from ggq.setup import sdist as source
from ggq.system import files

BACKEND = """
import pathlib
def prepare_metadata_for_build_wheel(folder, config_settings=None):
    info = pathlib.Path(folder, "llama_cpp_python-0.3.36.dist-info")
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\\nName: llama-cpp-python\\nVersion: 0.3.36\\n")
    return info.name
"""
CONTENT = {
    "PKG-INFO": "Metadata-Version: 2.1\nName: llama-cpp-python\nVersion: 0.3.36\n",
    "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
    "backend.py": BACKEND,
    "llama_cpp/__init__.py": "",
    "vendor/llama.cpp/CMakeLists.txt": "project(llama.cpp)",
    "vendor/llama.cpp/ggml/src/ggml.c": "int x;",
    "vendor/llama.cpp/convert_hf_to_gguf.py": "",
    "vendor/llama.cpp/models/large.gguf": "not wanted",
    "vendor/llama.cpp/docs/long.md": "not wanted",
}


def write_sdist(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    sdist = folder / "llama_cpp_python-0.3.36.tar.gz"
    with tarfile.open(sdist, "w:gz") as archive:
        for name, text in CONTENT.items():
            member = tarfile.TarInfo(f"llama_cpp_python-0.3.36/{name}")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return sdist


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place that pip may look at."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


def pin_of(sha256: str, folder: Path) -> Pin:
    file = folder / "requirements.txt"
    file.write_text(f"# commit: 0c1e57098\nllama-cpp-python==0.3.36 \\\n    --hash=sha256:{sha256}\n")
    return Pin("llama-cpp-python", "0.3.36", sha256, "0c1e57098", file)


def unpacked(home: Path) -> set[str]:
    source_dir = home / "src"
    return {str(file.relative_to(source_dir)) for file in source_dir.rglob("*") if file.is_file()}


def test_what_a_build_needs_is_fetched_once(home: Path, index: Path, tmp_path: Path) -> None:
    sdist = write_sdist(index)
    wanted = pin_of(hashlib.sha256(sdist.read_bytes()).hexdigest(), tmp_path)
    events: list[Event] = []
    source.fetch(home, wanted, events.append)
    assert unpacked(home) == {
        ".ggq-sdist-sha256", "CMakeLists.txt", "convert_hf_to_gguf.py", "ggml/src/ggml.c",
        "binding/pyproject.toml", "binding/llama_cpp/__init__.py",
    }  # fmt: skip
    assert [path.name for path in home.iterdir()] == ["src"]
    assert len(events) == 1

    sdist.unlink()
    source.fetch(home, wanted, events.append)
    assert len(events) == 1, "it was fetched again"


def test_a_moved_pin_replaces_source_and_build(home: Path, index: Path, tmp_path: Path) -> None:
    for left in ("src/old.c", "build/old.o", f"{files.STAGING}/killed/half.tar.gz"):
        (home / left).parent.mkdir(parents=True)
        (home / left).write_text("")
    (home / "src" / ".ggq-sdist-sha256").write_text("0" * 64)
    sdist = write_sdist(index)
    source.fetch(home, pin_of(hashlib.sha256(sdist.read_bytes()).hexdigest(), tmp_path), silent)
    assert "old.c" not in unpacked(home) and "CMakeLists.txt" in unpacked(home)
    assert [path.name for path in home.iterdir()] == ["src"]


def test_another_file_than_the_pinned_one_is_refused(home: Path, index: Path, tmp_path: Path) -> None:
    write_sdist(index)
    with pytest.raises(ToolchainProblem, match="could not be fetched") as caught:
        source.fetch(home, pin_of("0" * 64, tmp_path), silent)
    assert "DO NOT MATCH THE HASHES" in caught.value.why and "0" * 64 in caught.value.why
    assert list(home.iterdir()) == []


def test_an_index_out_of_reach_is_said(home: Path, index: Path, tmp_path: Path) -> None:
    with pytest.raises(ToolchainProblem, match="could not be fetched") as caught:
        source.fetch(home, pin_of("0" * 64, tmp_path), silent)
    assert "No matching distribution" in caught.value.why and "network" in caught.value.next_step
    assert list(home.iterdir()) == []


def test_too_little_disk_is_said_before_anything_is_fetched(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "free_bytes", lambda folder: 1_000_000)
    with pytest.raises(DiskFull, match="not enough disk for llama"):
        source.fetch(home, pin_of("0" * 64, tmp_path), silent)

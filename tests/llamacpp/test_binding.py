"""The Python binding runs on the tools' own libraries, and says so when it cannot."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ggq.errors import OutputProblem, ToolFailed
from ggq.llamacpp import binding
from ggq.llamacpp.pin import pin
from ggq.llamacpp.toolchain import Toolchain
from ggq.progress import silent
from ggq.system import process

LOAD = """
import sys
from pathlib import Path
from ggq.errors import ToolchainProblem
from ggq.llamacpp import binding
from ggq.llamacpp.toolchain import Toolchain
folder = Path(sys.argv[1])
try:
    print(binding.load(Toolchain("named", folder, folder, None, None)).__version__)
except ToolchainProblem as problem:
    print(problem.what)
"""


def load_in_a_child(folder: Path) -> str:
    return process.run([sys.executable, "-c", LOAD, folder]).stdout[-1]


@pytest.mark.tool
def test_it_loads_on_these_libraries(toolchain: Toolchain) -> None:
    assert binding.probe(toolchain) == binding.installed_version() == pin().version
    assert load_in_a_child(toolchain.lib_dir) == pin().version


@pytest.mark.tool
def test_a_folder_without_libraries_is_said(toolchain: Toolchain, tmp_path: Path) -> None:
    assert load_in_a_child(tmp_path) == "The Python binding does not load."
    with pytest.raises(ToolFailed) as caught:
        binding.probe(Toolchain("named", tmp_path, tmp_path, None, None))
    assert "'llama' not found" in caught.value.tail[-1]


@pytest.mark.tool
def test_libraries_of_another_llama_cpp_are_said(toolchain: Toolchain, tmp_path: Path) -> None:
    """A library that loads but lacks llama.cpp's functions: any other one does."""
    for name in ("libllama.so", "libllama.dylib"):
        (tmp_path / name).symlink_to(next(toolchain.lib_dir.glob("libggml-base.*")))
    assert load_in_a_child(tmp_path) == "The Python binding does not load."


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment in which a binding of the pinned version is installed, without libraries."""
    package = tmp_path / "site" / "llama_cpp"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    info = tmp_path / "site" / "llama_cpp_python-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: llama-cpp-python\nVersion: {pin().version}\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "site")
    # Another test may have imported the real one, which would then be found instead.
    monkeypatch.delitem(sys.modules, "llama_cpp", raising=False)
    return package


def test_a_plain_import_finds_the_libraries_too(site: Path, tmp_path: Path) -> None:
    for lib_dir in (tmp_path / "old", tmp_path / "new", tmp_path / "new"):
        lib_dir.mkdir(exist_ok=True)
        binding.install(tmp_path, pin(), lib_dir, silent)
        assert (site / "lib").resolve() == lib_dir


def test_libraries_that_a_user_compiled_stay(site: Path, tmp_path: Path) -> None:
    (site / "lib").mkdir()
    (site / "lib" / "libllama.so").write_text("theirs")
    binding.install(tmp_path, pin(), tmp_path / "ours", silent)
    assert not (site / "lib").is_symlink()


def test_an_environment_that_cannot_be_written_is_said(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    # The tests may run as root, whom no mode of a folder stops.
    monkeypatch.setattr(Path, "symlink_to", refuse)
    with pytest.raises(OutputProblem, match="cannot be written") as caught:
        binding.install(tmp_path, pin(), tmp_path, silent)
    assert "python3 -m venv" in caught.value.next_step

"""Where the tools are looked for, and what is said when they are not what was named."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from builds import info, put_tools

from ggq.errors import ToolchainProblem
from ggq.llamacpp import toolchain as toolchains
from ggq.llamacpp.pin import pin
from ggq.llamacpp.toolchain import Toolchain

pytestmark = pytest.mark.usefixtures("own_home")


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ggq's own llama.cpp would lie here; PATH holds nothing."""
    home = tmp_path / "own"
    home.mkdir()
    monkeypatch.setattr(toolchains, "home", lambda: home)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    return home


def test_nothing_anywhere_says_where_it_looked() -> None:
    with pytest.raises(ToolchainProblem) as caught:
        toolchains.find()
    assert "are not there" in caught.value.what and "no llama-quantize on PATH" in caught.value.why
    assert "ggq setup" in caught.value.next_step


def test_ggqs_own_build(own_home: Path) -> None:
    put_tools(own_home / "build" / "bin")
    (own_home / "build.json").write_text(json.dumps(asdict(info())))
    found = toolchains.find()
    assert found.origin == "built" and found.build == info() and found.caveats == ()
    assert found.converter == own_home / "src" / "convert_hf_to_gguf.py"


@pytest.mark.parametrize(
    "record",
    [None, "", "{", "[]", "null", '{"schema_version": 1}', json.dumps(asdict(info(commit="1234567")))],
)
def test_a_build_without_a_whole_record_of_the_pin_is_no_build(own_home: Path, record: str | None) -> None:
    put_tools(own_home / "build" / "bin")
    if record is not None:
        (own_home / "build.json").write_text(record)
    assert toolchains.built() is None


def test_a_record_without_its_tools_is_no_build(own_home: Path) -> None:
    (own_home / "build.json").write_text(json.dumps(asdict(info())))
    assert toolchains.built() is None


@pytest.mark.parametrize("below", ["", "bin", "build/bin"])
def test_a_named_build_in_any_of_its_folders(
    below: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bin_dir = put_tools(tmp_path / "llama.cpp" / below)
    monkeypatch.setenv("GGQ_LLAMA_CPP", str(tmp_path / "llama.cpp"))
    found = toolchains.find()
    assert (found.origin, found.bin_dir, found.commit) == ("named", bin_dir, pin().commit)
    assert found.caveats == ()


def test_the_converter_and_libraries_of_a_named_build(tmp_path: Path) -> None:
    root = tmp_path / "llama.cpp"
    bin_dir = put_tools(root / "build" / "bin")
    (root / "convert_hf_to_gguf.py").write_text("")
    (root / "build" / "lib").mkdir()
    (root / "build" / "lib" / "libllama.so").write_text("")
    found = toolchains.find(bin_dir)
    assert found.source_dir == root and found.lib_dir == root / "build" / "lib"


def test_a_named_build_without_a_converter_says_so_only_when_it_is_needed(tmp_path: Path) -> None:
    found = toolchains.find(put_tools(tmp_path / "bin"))
    with pytest.raises(ToolchainProblem, match="converter is missing"):
        _ = found.converter


def test_a_tool_that_is_missing_is_named(tmp_path: Path) -> None:
    found = toolchains.find(put_tools(tmp_path / "bin"))
    (tmp_path / "bin" / "llama-bench").unlink()
    with pytest.raises(ToolchainProblem, match="llama-bench is missing"):
        found.tool("llama-bench")


@pytest.mark.parametrize(
    ("version", "known"),
    [
        ("version: 4321 (0123abc)", "commit 0123abc"),
        ("version: 0.5.0-dev (build 0, commit 0123abcde)", "commit 0123abcde"),
        ("version: custom", "an unknown commit"),
    ],
)
def test_another_commit_is_a_caveat_in_words(version: str, known: str, tmp_path: Path) -> None:
    (caveat,) = toolchains.find(put_tools(tmp_path / "bin", version)).caveats
    assert known in caveat and f"tested with {pin().commit}" in caveat


def test_path_is_the_last_resort_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{put_tools(tmp_path / 'bin')}:/usr/bin:/bin")
    found = toolchains.find()
    assert found.origin == "path"
    assert "found on PATH" in found.caveats[0]


@pytest.mark.parametrize("kind", ["absent", "empty", "file", "not a program"])
def test_nonsense_in_the_environment_is_said(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "place"
    if kind == "file":
        place.write_text("")
    elif kind != "absent":
        place.mkdir()
    if kind == "not a program":
        (place / "llama-quantize").write_text("not executable")
    monkeypatch.setenv("GGQ_LLAMA_CPP", str(place))
    with pytest.raises(ToolchainProblem) as caught:
        toolchains.find()
    assert f"{place} holds no llama.cpp tools" in caught.value.what
    assert "unset GGQ_LLAMA_CPP" in caught.value.next_step


def test_programs_that_do_not_run_are_said(tmp_path: Path) -> None:
    bin_dir = put_tools(tmp_path / "bin")
    (bin_dir / "llama-completion").write_bytes(b"\x7fELF nonsense")
    with pytest.raises(ToolchainProblem, match="could not be started"):
        toolchains.find(bin_dir)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("0c1e57098", "0c1e57098", True),
        ("0c1e570", "0c1e57098aaaa", True),
        ("0c1e571", "0c1e57098", False),
        ("0c1e", "0c1e57098", False),
        ("", "", False),
    ],
)
def test_abbreviated_commits(one: str, other: str, same: bool) -> None:
    assert toolchains.same_commit(one, other) is same


@pytest.mark.tool
def test_the_real_tools_are_of_the_pinned_commit(toolchain: Toolchain) -> None:
    if toolchain.origin == "built":
        assert toolchain.caveats == ()
        assert toolchain.build is not None and set(toolchain.build.self_test.values()) == {"ok"}
    assert toolchain.converter.is_file()

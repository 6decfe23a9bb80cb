"""A build that another user owns or can write is not used without a word."""

from __future__ import annotations

import grp
import json
import os
import pwd
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
from builds import info, put_tools
from click.testing import CliRunner

from ggq.cli.main import cli
from ggq.errors import ToolchainProblem
from ggq.llamacpp import ownership, toolchain
from ggq.operations import doctor

STRANGER, GROUP = 54321, 54322
Pretend = Callable[..., None]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished build of ggq's, without anything that runs."""
    home = tmp_path / "above" / "own"
    bin_dir = put_tools(home / "build" / "bin")
    (bin_dir / "libggml.so.0").write_text("")
    (bin_dir / "libggml.so").symlink_to("libggml.so.0")
    for name in ("convert_hf_to_gguf.py", "conversion/llama.py", "gguf-py/gguf/constants.py"):
        (home / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        (home / "src" / name).write_text("")
    (home / "build.json").write_text(json.dumps(asdict(info())))
    monkeypatch.setattr(toolchain, "home", lambda: home)
    return home


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Pretend:
    """Have a path belong to another user or group, as nobody but root could make it."""
    changes: dict[str, dict[int, int]] = {}
    real = os.lstat

    def lstat(path: str | Path) -> os.stat_result:
        status = list(real(path))
        for index, number in changes.get(str(path), {}).items():
            status[index] = number
        return os.stat_result(status)

    def change(path: Path, *, user: int | None = None, group: int | None = None) -> None:
        found = {4: user, 5: group}
        changes[str(path)] = {key: value for key, value in found.items() if value is not None}

    monkeypatch.setattr(os, "lstat", lstat)
    return change


PLACES = (
    "build.json", "build/bin", "build/bin/llama-quantize", "build/bin/libggml.so.0", "src",
    "src/convert_hf_to_gguf.py", "src/conversion", "src/conversion/llama.py", "src/gguf-py/gguf/constants.py",
    "src/gguf-py", ".", "..",
)  # fmt: skip


def refusal() -> ToolchainProblem:
    with pytest.raises(ToolchainProblem, match="somebody else can change it") as caught:
        toolchain.find()
    return caught.value


def test_one_that_is_the_users_own_is_used(home: Path) -> None:
    assert toolchain.find().exposed is None


@pytest.mark.parametrize("place", PLACES)
def test_what_everybody_may_write_is_refused(home: Path, place: str) -> None:
    path = (home / place).resolve()
    path.chmod(path.stat().st_mode | 0o002)
    problem = refusal()
    assert problem.why == f"{path} can be written by every user."
    assert f"set GGQ_LLAMA_CPP to {home / 'build' / 'bin'}" in problem.next_step
    assert ("`ggq setup`" in problem.next_step) == (place not in (".", ".."))


@pytest.mark.parametrize("place", [*PLACES, "build/bin/libggml.so"])
def test_what_belongs_to_another_user_is_refused(home: Path, place: str, pretend: Pretend) -> None:
    path = home / place if place.endswith(".so") else (home / place).resolve()
    pretend(path, user=STRANGER)
    assert refusal().why == f"{path} belongs to user {STRANGER}."


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="not root: cannot give files away")
def test_it_is_so_in_truth(home: Path) -> None:
    os.chown(home / "src" / "conversion" / "llama.py", STRANGER, -1)
    assert f"belongs to user {STRANGER}" in refusal().why


def test_of_a_link_the_target_counts(home: Path, tmp_path: Path, pretend: Pretend) -> None:
    target = tmp_path / "elsewhere" / "libggml-cuda.so"
    target.parent.mkdir()
    target.write_text("")
    (home / "build" / "bin" / "libggml-cuda.so").symlink_to(target)
    assert toolchain.find().exposed is None
    pretend(target.parent, user=STRANGER)
    assert str(target.parent) in refusal().why


def test_root_the_owner_of_ggq_and_oneself_are_trusted(
    home: Path, pretend: Pretend, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(home / "build.json", user=0)
    pretend(home / "src", user=Path(ownership.__file__).stat().st_uid)
    monkeypatch.setattr(os, "getuid", lambda: STRANGER)
    pretend(home / "build", user=STRANGER)
    assert toolchain.find().exposed is None


def test_a_sticky_folder_above_is_enough_but_not_the_folder_itself(home: Path) -> None:
    home.parent.chmod(0o1777)
    assert toolchain.find().exposed is None
    (home / "build" / "bin").chmod(0o1777)
    assert str(home / "build" / "bin") in refusal().why


@pytest.mark.parametrize(
    ("name", "members", "is_exposed"),
    [
        ("me", [], False),  # a private group, as of systems with umask 002
        ("me", ["me"], False),
        ("me", ["me", "other"], True),
        ("users", [], True),
    ],
)
def test_a_group_counts_unless_it_is_the_users_own(
    home: Path, pretend: Pretend, monkeypatch: pytest.MonkeyPatch,
    name: str, members: list[str], is_exposed: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr(pwd, "getpwuid", lambda user: SimpleNamespace(pw_name="me"))
    monkeypatch.setattr(grp, "getgrgid", lambda group: SimpleNamespace(gr_name=name, gr_mem=members))
    (home / "src").chmod(0o775)
    pretend(home / "src", group=GROUP)
    if is_exposed:
        assert refusal().why == f"{home / 'src'} can be written by the group {name} ({GROUP})."
    else:
        assert toolchain.find().exposed is None


def test_a_group_without_a_name_is_known_by_its_number(
    home: Path, pretend: Pretend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nameless(number: int) -> None:
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", nameless)
    monkeypatch.setattr(grp, "getgrgid", nameless)
    monkeypatch.setattr(os, "getuid", lambda: GROUP)
    (home / "src").chmod(0o775)
    pretend(home / "src", user=GROUP, group=GROUP)
    assert toolchain.find().exposed is None
    pretend(home / "src", user=GROUP, group=GROUP + 1)
    assert refusal().why == f"{home / 'src'} can be written by the group {GROUP + 1}."


def test_a_named_build_is_used_with_a_warning(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bin_dir = home / "build" / "bin"
    (bin_dir / "llama-quantize").chmod(0o777)
    monkeypatch.setenv("GGQ_LLAMA_CPP", str(bin_dir))
    assert toolchain.find().origin == "named"
    (warning,) = caplog.messages
    assert f"{bin_dir / 'llama-quantize'} can be written by every user." in warning


def test_of_a_folder_of_the_systems_only_llama_cpps_files_count(tmp_path: Path) -> None:
    bin_dir = put_tools(tmp_path / "usr" / "bin")
    (bin_dir / "other-program").write_text("")
    (bin_dir / "other-program").chmod(0o777)
    assert toolchain.find(bin_dir).exposed is None


def test_who_can_change_ggq_itself_is_told_not_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    package = home.parent.parent / "ggq"
    package.mkdir()
    package.chmod(0o777)
    monkeypatch.setattr(ownership, "_PACKAGE", package)
    (home / "src").chmod(0o777)
    assert toolchain.find().origin == "built"
    assert "can be written by every user" in caplog.text


def test_what_ggq_itself_does_not_share_comes_first(home: Path, pretend: Pretend) -> None:
    root = Path(ownership.__file__).parents[2]
    pretend(root, user=STRANGER)
    pretend(home / "src", user=STRANGER)
    parts = [ownership.Part(root), ownership.Part(home / "src")]
    found = ownership.first_exposed(parts)
    assert found is not None and found.path == home / "src"
    found = ownership.first_exposed([ownership.Part(root, lambda name: False)])
    assert found is not None and found.as_ggq


def test_the_command_says_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "build.json").chmod(0o666)
    done = CliRunner().invoke(cli, ["doctor", "--json"])
    report = json.loads(done.stdout)
    (line,) = (check for check in report["checks"] if check["topic"] == "llama.cpp")
    assert line["status"] == "problem" and f"{home / 'build.json'} can be written" in line["finding"]
    assert done.exit_code == 1 and "Traceback" not in done.output

    monkeypatch.setenv("GGQ_LLAMA_CPP", str(home / "build" / "bin"))
    (home / "build" / "bin").chmod(0o777)
    patient = doctor._Patient(None, toolchain.find(), None, None, {}, None)
    assert any("every user" in check.finding for check in doctor._toolchain(patient))

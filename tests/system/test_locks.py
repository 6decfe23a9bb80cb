"""File systems without flock, and users without a home: it works, or the words name what to set."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ggq.cli.explain import explain
from ggq.errors import DiskFull, OutputProblem
from ggq.system import files, locks, places

NO_FLOCK = pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])


@pytest.fixture
def without_flock(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: object, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


@NO_FLOCK
@pytest.mark.filterwarnings("error")
def test_a_file_system_without_flock(without_flock: None, tmp_path: Path) -> None:
    with (
        files.lock(tmp_path),
        pytest.raises(OutputProblem, match=r"Another ggq.*delete .*\.lock-file"),
        files.lock(tmp_path),
    ):
        pass
    told: list[object] = []
    with files.lock(tmp_path, listener=told.append):
        assert not locks.has_locks(tmp_path)
    assert len(told) == 1 and "has no locks" in str(told[0])


def test_the_system_s_lock_where_there_is_one(tmp_path: Path) -> None:
    assert locks.has_locks(tmp_path)
    with files.lock(tmp_path, listener=lambda event: pytest.fail(str(event))):
        pass
    with files.lock(tmp_path), pytest.raises(OutputProblem, match="Wait until"), files.lock(tmp_path):
        pass


SOURCE = """
#include <errno.h>
#include <stdlib.h>
int flock(int descriptor, int operation) { errno = atoi(getenv("WITHOUT_FLOCK")); return -1; }
"""


@NO_FLOCK
@pytest.mark.skipif(sys.platform != "linux", reason="this system is not Linux")
@pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler")
def test_a_whole_command_without_flock(number: int, tmp_path: Path) -> None:
    (tmp_path / "without.c").write_text(SOURCE)
    library = tmp_path / "without.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "without.c"], check=True)
    code = "from pathlib import Path; from ggq.system import files\nwith files.lock(Path('.')): print('held')"
    env = {**os.environ, "LD_PRELOAD": str(library), "WITHOUT_FLOCK": str(number)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert (done.stdout, done.stderr) == ("held\n", "")


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """As a container's user whom no passwd entry names."""
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "USER", "LOGNAME", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    pwd = pytest.importorskip("pwd")

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_without_a_home_the_variable_is_named(homeless: Path) -> None:
    with pytest.raises(OutputProblem, match="HOME"):
        places.cache()


def test_a_command_without_a_home_gets_one(homeless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "")  # restored afterwards
    monkeypatch.delenv("HOME")
    monkeypatch.setenv("USER", "")
    told = places.shelter()
    assert told is not None and str(homeless) in told
    assert places.cache().is_relative_to(homeless)
    assert Path.home().stat().st_mode & 0o077 == 0
    assert os.environ["USER"] == str(os.getuid())
    assert places.shelter() is None


def test_a_home_that_somebody_else_has_prepared_is_not_used(homeless: Path) -> None:
    (homeless / f"ggq-home-{os.getuid()}").symlink_to("/")
    places.shelter()
    assert Path.home().parent == homeless and not Path.home().is_symlink()


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="not root: cannot be somebody else")
@pytest.mark.skipif(not shutil.which("setpriv"), reason="this system has no setpriv")
def test_the_command_as_a_user_without_an_entry(example: Path) -> None:
    reads_all = ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]
    done = subprocess.run(
        ["setpriv", "--reuid", "54321", "--clear-groups", *reads_all, "env", "-i", "PATH=/usr/bin:/bin",
         sys.executable, "-m", "ggq", "download", "org/none", "--offline"],
        capture_output=True, text=True, timeout=60, cwd=example.parents[1],
    )  # fmt: skip
    assert done.returncode == 1 and "something that it does not know" not in done.stderr, done.stderr
    assert "no home folder" in done.stderr and "org/none" in done.stderr


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_every_error_of_the_system_has_words(number: int) -> None:
    told = explain(OSError(number, os.strerror(number), "some/file"))
    assert "does not know" not in told.what and told.next_step
    assert "some/file" in str(told) or number == errno.EAGAIN
    assert isinstance(told, DiskFull) == (number in (errno.ENOSPC, errno.EDQUOT))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError("Unable to allocate 5 GiB"), "Memory ran out"),
        (RecursionError("maximum recursion depth exceeded"), "nested too deep"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "encoding"),
        (RuntimeError("can't start new thread"), "No more threads"),
        (RuntimeError("Could not determine home directory."), "Set HOME"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "No more processes"),
    ],
)
def test_what_can_be_foreseen_has_words(error: Exception, words: str) -> None:
    assert words in str(explain(error)) and "does not know" not in str(explain(error))


def test_what_cannot_be_foreseen_is_a_bug() -> None:
    assert "does not know" in explain(KeyError("x")).what

"""Working folders in the temporary folder: gone after use, swept after a kill, the living keep theirs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from ggq.system import scratch

HOLD = """
import sys
from ggq.system import scratch
with scratch.folder("view") as held:
    print(held, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def holder() -> tuple[subprocess.Popen[str], Path]:
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    return other, Path(other.stdout.readline().strip())


def test_a_folder_lasts_as_long_as_its_block(temporary: Path) -> None:
    with scratch.folder("view") as made:
        assert made.parent == temporary and made.stat().st_mode & 0o077 == 0
    assert not list(temporary.iterdir())


def test_what_a_killed_run_left_is_removed_by_the_next_one(temporary: Path) -> None:
    other, left = holder()
    with scratch.folder("view"):
        assert left.is_dir()  # it lives
    other.kill()
    other.communicate()
    assert left.is_dir()
    with scratch.folder("run"):
        assert not left.exists()


def test_what_is_not_surely_left_stays(temporary: Path) -> None:
    young, old, foreign = (temporary / f"ggq-view-{name}" for name in ("young", "old", "foreign"))
    elsewhere = temporary / "precious"
    for folder in (young, old, elsewhere):
        folder.mkdir()
    foreign.symlink_to(elsewhere)
    past = time.time() - 2 * 24 * 3600
    os.utime(old, (past, past))
    scratch.sweep()
    assert young.is_dir() and elsewhere.is_dir() and foreign.is_symlink()
    assert not old.exists()


@pytest.mark.skipif(
    not hasattr(os, "getuid") or os.getuid() != 0, reason="not root: cannot make another's folder"
)
def test_another_users_folder_stays(temporary: Path) -> None:
    other = temporary / "ggq-view-other"
    other.mkdir()
    (other / ".held").touch()
    os.chown(other, 12345, 12345)
    scratch.sweep()
    assert other.is_dir()


def test_no_other_module_makes_folders_that_nobody_sweeps() -> None:
    """In the temporary folder, that is: a ``dir`` of its own is swept with what it lies in."""
    house = Path(scratch.__file__).parent
    making = {
        str(file.relative_to(house))
        for file in house.rglob("*.py")
        for call in re.findall(r"(?:TemporaryDirectory|mkdtemp)\(([^)]*)", file.read_text(encoding="utf-8"))
        if "dir=" not in call
    }
    assert making == {"scratch.py", "places.py"}  # a home must outlive the command

"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from ggq.errors import DiskFull, OutputProblem
from ggq.progress import Event, Step
from ggq.system import files


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (76_589_250, "76.6 MB"),
        (999_600, "1.00 MB"),
        (4_920_000_000, "4.92 GB"),
        (2e13, "20.0 TB"),
    ],
)
def test_bytes_are_said_as_disks_are_sold(count: float, words: str) -> None:
    assert files.human_bytes(count) == words


def test_a_digest_is_sha256_and_tells_how_far_it_is(tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000
    (tmp_path / "f").write_bytes(content)
    events: list[Event] = []
    assert files.sha256_file(tmp_path / "f", events.append, "digest") == hashlib.sha256(content).hexdigest()
    assert events[-1] == Step("digest", len(content), len(content))


def test_free_space_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert files.free_bytes(tmp_path / "a" / "b") > 0


def test_too_little_disk_is_refused_with_the_numbers(tmp_path: Path) -> None:
    files.require_space(tmp_path, 1, "a test")
    with pytest.raises(DiskFull) as caught:
        files.require_space(tmp_path, 10**18, "a test")
    assert "It needs 1000000 TB" in caught.value.why and "free" in caught.value.why
    assert caught.value.next_step.startswith("Free ")


def test_json_is_written_whole_and_readable(tmp_path: Path) -> None:
    target = tmp_path / "x.json"
    files.write_json(target, {"b": 1, "a": "한"})
    files.write_json(target, {"b": 2, "a": "한"})
    assert json.loads(target.read_text(encoding="utf-8")) == {"b": 2, "a": "한"}
    assert target.stat().st_mode & 0o777 == 0o644
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]


def test_json_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "x.json"
    files.write_json(target, {"a": 1})
    with pytest.raises(TypeError):
        files.write_json(target, {"a": object()})
    assert json.loads(target.read_text()) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]


def test_publishing_is_a_rename(tmp_path: Path) -> None:
    with files.staging(tmp_path) as work:
        (work / "f").write_text("new")
        files.publish(work / "f", tmp_path / "f")
    assert (tmp_path / "f").read_text() == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["f"]


def test_staging_clears_what_a_killed_run_left(tmp_path: Path) -> None:
    left = tmp_path / files.STAGING / "old"
    left.mkdir(parents=True)
    (left / "half.gguf").write_text("half")
    with files.staging(tmp_path) as work:
        assert not left.exists() and work.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_staging_is_removed_when_the_work_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), files.staging(tmp_path) as work:
        (work / "f").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputProblem) as caught:
        files.make_folder(tmp_path / "file" / "sub")
    assert "Not a directory" in caught.value.why


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, DiskFull), (errno.EDQUOT, DiskFull), (errno.EROFS, OutputProblem)]
)
def test_errors_of_the_system_become_words(tmp_path: Path, number: int, kind: type[Exception]) -> None:
    with pytest.raises(kind), files.explain_os_error(tmp_path):
        raise OSError(number, "said the system")


def test_one_ggq_at_a_time(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from ggq.system import files\n"
        "with files.lock(Path(sys.argv[1])): print('got it', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None and other.stdout.readline() == "got it\n"
    with pytest.raises(OutputProblem, match="Another ggq is at work"), files.lock(tmp_path):
        pass
    other.kill()  # the system frees the lock of a process that dies
    other.communicate()
    with files.lock(tmp_path):
        assert list(tmp_path.iterdir()) == []

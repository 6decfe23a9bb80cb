"""Standard streams that are closed, full in another encoding: words and an exit code, never a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

GGQ = f"{sys.executable} -m ggq"
FULL = Path("/dev/full")
full = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")


def shell(command: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", command],
        capture_output=True,
        env={**os.environ, **env},
        timeout=120,
        encoding="utf-8",
        errors="surrogateescape",
    )


@pytest.mark.parametrize("verb", ["inspect {}", "inspect {} --json", "presets", "presets --json", "--help"])
@pytest.mark.parametrize("streams", [">&-", "2>&-", "<&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams(verb: str, streams: str, example: Path) -> None:
    done = shell(f"{GGQ} {verb.format(example)} {streams}")
    assert done.returncode == 0 and "Traceback" not in done.stderr + done.stdout
    assert "something that it does not know" not in done.stderr


def test_a_closed_stream_gives_its_number_to_no_file(example: Path) -> None:
    """Else what a library prints would go into the file that was opened next."""
    code = (
        "from ggq.cli import streams; streams.install(); import os; f = open(os.devnull); "
        "raise SystemExit(f.fileno() < 3)"
    )
    assert shell(f"{sys.executable} -c '{code}' <&- >&- 2>&-").returncode == 0


@full
@pytest.mark.parametrize("verb", ["inspect {}", "inspect {} --json", "presets", "--help", "--version"])
def test_a_full_standard_output(verb: str, example: Path) -> None:
    done = shell(f"{GGQ} {verb.format(example)} >/dev/full")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "standard output has no room" in done.stderr and "next: " in done.stderr


@full
def test_an_error_with_a_full_standard_output() -> None:
    done = shell(f"{GGQ} inspect ./nothing-here --json >/dev/full")
    assert done.returncode in (1, 2) and "no file or folder" in done.stderr and "Traceback" not in done.stderr


@full
def test_remarks_that_cannot_be_written_break_nothing_off(example: Path) -> None:
    done = shell(f"{GGQ} inspect {example} --json -v 2>/dev/full")
    assert done.returncode == 0 and json.loads(done.stdout)["kind"]
    assert shell(f"{GGQ} inspect ./nothing-here 2>/dev/full").returncode == 2


@pytest.mark.parametrize("verb", ["inspect {}", "inspect {} --json", "presets", "presets --json", "--help"])
def test_a_reader_who_has_seen_enough(verb: str, example: Path) -> None:
    done = shell(f"{GGQ} {verb.format(example)} | head -n 1")
    assert done.returncode == 0 and done.stderr == "" and done.stdout


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp949", "ascii:strict", "utf-8:strict"])
def test_letters_that_the_encoding_lacks(encoding: str, example: Path, tmp_path: Path) -> None:
    folder = tmp_path / "모델-é-😀"
    folder.symlink_to(example)
    for more in ("", "--json"):
        done = shell(f"{GGQ} inspect '{folder}' {more}", PYTHONIOENCODING=encoding)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
    told = json.loads(done.stdout.encode("utf-8", "surrogateescape"))  # JSON of every encoding's letters
    assert any(str(value).endswith(folder.name) for value in told.values())


@pytest.mark.parametrize("columns", ["1", "60"])
def test_a_dumb_narrow_terminal(columns: str, example: Path) -> None:
    done = shell(f"{GGQ} inspect {example} </dev/null", TERM="dumb", COLUMNS=columns)
    assert done.returncode == 0 and "embeddings" in done.stdout


def test_a_thread_that_dies_ends_the_command_with_words() -> None:
    code = """
import threading, time
import click
from ggq.cli import error_messages, group
def fail(): raise MemoryError("of a thread")
verbs = group.GgqGroup(verbs={"slow": "A slow one."})
command = click.Command("slow", callback=lambda: (threading.Thread(target=fail).start(), time.sleep(60)))
verbs.get_command = lambda ctx, name: command
with error_messages.in_words():
    verbs(["slow"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert done.returncode == 1 and "Memory ran out" in done.stderr and "Traceback" not in done.stderr


def test_a_current_folder_that_is_gone(example: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    python = f"PYTHONPATH={example.parents[1]} {GGQ}"
    done = shell(f"cd {gone} && rmdir {gone} && {python} convert {example}")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "does not know" not in done.stderr and "next: " in done.stderr

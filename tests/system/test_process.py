"""The one wrapper of child processes: its lines, its endings, and that nothing lives on."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from ctrl_c import heed_ctrl_c

from ggq.errors import ToolchainProblem, ToolFailed
from ggq.system import process
from ggq.system.process import Watch

PYTHON = sys.executable


def run(code: str, **options: object) -> process.Completed:
    return process.run([PYTHON, "-c", code], **options)


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def wait_until(condition: object, seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.02)
    return False


def test_lines_come_from_both_streams_and_to_the_handlers() -> None:
    seen: list[str] = []
    done = run("import sys; print('one'); print('two', file=sys.stderr)", watch=Watch(seen.append))
    assert (done.stdout, done.stderr, seen) == (("one",), ("two",), ["one"])
    assert done.returncode == 0 and done.seconds > 0


def test_a_carriage_return_ends_a_line_and_so_does_the_end() -> None:
    done = run("import sys; sys.stdout.write('10%\\r20%\\r\\nlast')")
    assert done.stdout == ("10%", "20%", "last")


def test_bytes_that_are_not_utf8_are_no_obstacle() -> None:
    done = run("import sys; sys.stdout.buffer.write(b'caf\\xc3\\xa9 \\xff\\n')")
    assert done.stdout == ("café \N{REPLACEMENT CHARACTER}",)


def test_a_letter_cut_between_two_reads_stays_whole() -> None:
    code = (
        "import sys, time; w = sys.stdout.buffer; w.write(b'\\xed\\x95'); w.flush();"
        " time.sleep(0.2); w.write(b'\\x9c\\n')"
    )
    assert run(code).stdout == ("한",)


def test_stdin_is_given_or_empty() -> None:
    assert run("print(input())", stdin="안녕\n").stdout == ("안녕",)
    assert run("import sys; print(repr(sys.stdin.read()))").stdout == ("''",)


def test_a_child_that_does_not_read_its_stdin_is_no_error() -> None:
    assert run("pass", stdin="x" * 1_000_000).returncode == 0


def test_much_output_on_both_pipes_does_not_block_and_is_kept_within_bounds() -> None:
    code = "import sys\nfor i in range(60_000):\n  print(i, 'x' * 40); print(i, 'y' * 40, file=sys.stderr)"
    done = run(code)
    assert done.stdout[-1].startswith("59999 ") and done.stderr[-1].startswith("59999 ")
    assert len(done.stdout) == len(done.stderr) == 20_000


def test_a_failure_carries_its_command_its_exit_and_its_last_words() -> None:
    with pytest.raises(ToolFailed) as caught:
        run("import sys; print('almost'); sys.exit('the disk is on fire')")
    assert caught.value.returncode == 1
    assert caught.value.tail == ("almost", "the disk is on fire")
    assert "exit 1" in caught.value.what


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGILL", "SIGABRT"])
def test_a_signal_is_a_finding(name: str) -> None:
    with pytest.raises(ToolFailed) as caught:
        run(f"import os, signal; os.kill(os.getpid(), signal.{name})")
    assert caught.value.returncode == -getattr(signal, name)
    assert f"was killed by {name}" in caught.value.what


def test_without_check_a_failure_is_only_told() -> None:
    assert run("raise SystemExit(3)", check=False).returncode == 3


def test_a_program_that_cannot_be_started_says_why(tmp_path: Path) -> None:
    with pytest.raises(ToolchainProblem, match="could not be started"):
        process.run([tmp_path / "absent"])
    nonsense = tmp_path / "nonsense"
    nonsense.write_bytes(b"\0\1\2")
    nonsense.chmod(0o755)
    with pytest.raises(ToolchainProblem) as caught:
        process.run([nonsense])
    assert "Exec format error" in caught.value.why


def test_a_time_out_ends_the_child_and_what_it_started(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    code = (
        "import subprocess, sys, time, pathlib;"
        " c = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        f" pathlib.Path({str(note)!r}).write_text(str(c.pid)); time.sleep(60)"
    )
    started = time.monotonic()
    with pytest.raises(ToolFailed) as caught:
        run(code, timeout_s=2)
    assert caught.value.returncode == -signal.SIGKILL
    assert time.monotonic() - started < 10
    assert wait_until(lambda: not is_alive(int(note.read_text())))


def test_the_environment_is_added_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GGQ_TEST_OUTER", "outer")
    code = "import os; print(os.environ['GGQ_TEST_OUTER'], os.environ['GGQ_TEST_INNER'])"
    assert run(code, env={"GGQ_TEST_INNER": "inner"}).stdout == ("outer inner",)


MEASURER = """
import sys
from ggq.system import process
from ggq.system.process import Watch
child = [sys.executable, "-c", "x = bytearray(200_000_000)"]
print(process.run(child).peak_rss_bytes)
ours = bytearray(300_000_000)
print(process.run(child).peak_rss_bytes)
"""


def test_the_peak_of_memory_is_the_childs_or_unknown() -> None:
    alone, below_ours = run(MEASURER).stdout  # in a process of its own, since this one may be large
    assert 200_000_000 < int(alone) < 230_000_000
    assert below_ours == "None"


PARENT = """
import pathlib, sys
from ggq.system import process
from ggq.system.process import Watch
process.run(
    [sys.executable, "-c", "import os, pathlib, sys, time;"
     " pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(60)", sys.argv[1]]
)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="this system does not end orphans: only Linux does")
def test_a_child_does_not_outlive_a_parent_that_is_killed(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    parent = subprocess.Popen([PYTHON, "-c", PARENT, note])
    assert wait_until(lambda: note.is_file() and note.read_text())
    child = int(note.read_text())
    parent.kill()
    parent.wait()
    assert wait_until(lambda: not is_alive(child))


def test_ctrl_c_ends_the_child_in_order(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    parent = subprocess.Popen([PYTHON, "-c", PARENT, note], stderr=subprocess.PIPE, preexec_fn=heed_ctrl_c)
    assert wait_until(lambda: note.is_file() and note.read_text())
    child = int(note.read_text())
    parent.send_signal(signal.SIGINT)
    _, words = parent.communicate(timeout=15)
    assert b"KeyboardInterrupt" in words
    assert wait_until(lambda: not is_alive(child))


def test_ctrl_c_on_the_terminal_reaches_ggq_alone() -> None:
    """The child has a group of its own, so that the terminal's signal does not end it under ggq's hands."""
    done = run("import os; print(os.getpgid(0) == os.getpid())")
    assert done.stdout == ("True",)


def test_the_childs_id_is_told_when_it_starts() -> None:
    started: list[int] = []
    done = run("import os; print(os.getpid())", watch=Watch(on_start=started.append))
    assert [str(pid) for pid in started] == list(done.stdout)


def test_what_is_run_and_said_is_logged_but_where_it_is_kept_from_that(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.DEBUG, process.LOG):
        run("print('heard')")
        run("print('silent')", watch=Watch(echo=False))
    command, line = caplog.messages
    assert command.startswith(f"$ {PYTHON} -c") and line == "heard"


def test_the_kernels_out_of_memory_killer_is_told_from_a_plain_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its count is made up: the killer cannot be called without endangering the whole machine."""
    die = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    plain = run(die, check=False)
    assert (plain.returncode, plain.out_of_memory) == (-signal.SIGKILL, False)
    counts = iter([3, 4])
    monkeypatch.setattr(process, "_oom_kills", lambda: next(counts))
    with pytest.raises(
        ToolFailed, match=r"killed by SIGKILL, by the kernel's out-of-memory killer\."
    ) as caught:
        run(die)
    assert caught.value.out_of_memory


def test_the_kernels_count_of_such_kills(tmp_path: Path) -> None:
    (tmp_path / "vmstat").write_text("nr_free_pages 5\noom_kill 7\ndrop_pagecache 0\n")
    assert process._oom_kills(tmp_path / "vmstat") == 7
    assert process._oom_kills(tmp_path / "absent") == 0


FORK_HOOK = """
import os, signal
os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), signal.SIGINT))
from ggq.system import process
from ggq.system.process import Watch
try:
    process.run(["sleep", "30"])
except KeyboardInterrupt:
    print("heeded")
"""


def test_ctrl_c_in_the_middle_of_a_fork_is_heeded() -> None:
    """What is raised in a package's hook into a fork is printed and forgotten; a Ctrl-C must not be."""
    done = subprocess.run(
        [sys.executable, "-c", FORK_HOOK], capture_output=True, text=True, timeout=20, preexec_fn=heed_ctrl_c
    )
    assert done.stdout == "heeded\n", done.stderr


def test_what_a_handler_raises_reaches_the_caller_and_ends_the_child() -> None:
    """A child that is not read any more would wait for ever."""

    def refuse(line: str) -> None:
        raise ValueError(line)

    endless = "import sys\nwhile True: print('x' * 200, file=sys.stderr)"
    with pytest.raises(ValueError, match="xxx"):
        run(endless, watch=Watch(on_stderr=refuse))
    with pytest.raises(ValueError, match="once"):
        run("print('once', flush=True); import time; time.sleep(600)", watch=Watch(refuse))


def test_no_more_threads_is_told_and_leaves_no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    real = subprocess.Popen

    class Popen(real):  # type: ignore[valid-type, misc]
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **options)
            started.append(self.pid)

    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(subprocess, "Popen", Popen)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(ToolchainProblem) as caught:
        run("import time; time.sleep(600)")
    assert "no more processes, threads or memory" in caught.value.why and "ulimit" in caught.value.next_step
    assert wait_until(lambda: not is_alive(started[0]))


def test_no_more_processes_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.raises(ToolchainProblem, match="no more processes"):
        run("pass")


def test_a_tool_runs_in_no_folder_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp loads libggml-*.so from the current folder; and relative paths still lead where they did."""
    monkeypatch.chdir(tmp_path)
    Path("given").write_text("here")
    code = "import os, pathlib, sys; print(os.getcwd(), pathlib.Path(sys.argv[1]).read_text())"
    assert process.run([PYTHON, "-c", code, Path("given")]).stdout == ("/ here",)


def test_the_last_words_are_few_and_short() -> None:
    done = run("for i in range(50): print(i, 'y' * 5000)")
    assert len(done.tail) == 12 and max(map(len, done.tail)) <= 301
    died = run("for i in range(50): print(i, flush=True)\nimport os; os.abort()", check=False)
    assert died.tail == ("47", "48", "49")


def test_no_debugger_speaks_behind_a_tool() -> None:
    assert run("import os; print(os.environ['GGML_NO_BACKTRACE'])").stdout == ("1",)

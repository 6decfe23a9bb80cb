"""How llama.cpp's programs end by a signal, in words: at a check of their own, by an exception, in a crash.

An aborted tool leaves a log whose last lines are for llama.cpp's developers. What it stopped at is one of
them: ``…/ops.cpp:4132: GGML_ASSERT(eps >= 0.0f) failed``, or C++'s ``what():  vector::_M_range_check``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ggq.errors import ToolFailed, signal_name
from ggq.system.process import Completed

_COLUMNS = 300
_DOCTOR = "Run `ggq doctor`."
_FILE = "Check the file: `ggq inspect FILE` shows its settings; `ggq doctor` tries the tools themselves."
_PORTABLE = "Run `ggq setup --portable`."
# What ggml_abort writes (ggml.c), with the condition where it is an assertion.
_ABORT = re.compile(r"^(?:.*[/\\])?([\w.+-]+\.(?:c|cc|cpp|cu|cuh|m|mm|h|hpp|metal)):(\d+): (.+)$")
_ASSERTION = re.compile(r"GGML_ASSERT\((.*)\) failed")
_WHAT = re.compile(r"^\s*what\(\):\s+(.+)")
_THROWN = re.compile(
    r"terminat\w+ (?:called after throwing an instance|due to uncaught exception) of (?:type )?(.+)"
)
_OF_THE_LIBRARY = re.compile(
    r"^(?:\*\*\* )?(?:malloc|free|realloc|corrupted|double free|munmap|stack smashing).*"
)

_CRASHES = {
    "SIGSEGV": "It crashed inside llama.cpp: it reached for memory that is not its own.",
    "SIGBUS": "It crashed inside llama.cpp: a part of the file, or of memory, could not be reached.",
    "SIGFPE": "It crashed inside llama.cpp: it divided by zero.",
    "SIGILL": "It met an instruction that this machine does not have.",
    "SIGABRT": "It stopped itself, and did not say why.",
}  # fmt: skip


def why(returncode: int, lines: Sequence[str]) -> str | None:
    """Why a program of llama.cpp's, or a child with its libraries, was ended by a signal: a sentence.

    None where it ended otherwise, and for a signal that came from outside.
    """
    name = signal_name(-returncode) if returncode < 0 else ""
    if name == "SIGABRT":
        return _aborted(lines) or _CRASHES[name]
    return _CRASHES.get(name)


def failed(done: Completed, next_step: str = _DOCTOR, *, of_file: bool = True) -> ToolFailed:
    """The error for a program that did not end well; ``next_step`` where no signal ended it.

    ``of_file``: a user's file may be the cause.
    """
    reason = None if done.out_of_memory else why(done.returncode, (*done.stdout, *done.stderr))
    if reason is None:
        return done.failed(next_step)
    advice = _PORTABLE if signal_name(-done.returncode) == "SIGILL" else _FILE if of_file else _DOCTOR
    return ToolFailed(done.command, done.returncode, (reason,), advice)


def checked(done: Completed, *, of_file: bool = True) -> Completed:
    """The same, where it ended well. Raises ToolFailed."""
    if done.returncode == 0:
        return done
    raise failed(done, "", of_file=of_file)


def _aborted(lines: Sequence[str]) -> str | None:
    """What the last of the telling lines tells."""
    for index in range(len(lines) - 1, -1, -1):
        line = lines[index].strip()
        if assertion := _ASSERTION.search(line):
            place = _ABORT.match(line)
            where = f" ({place[1]}:{place[2]})" if place else ""
            return f"llama.cpp stopped at a check of its own: {_short(assertion[1])}{where}."
        if found := _WHAT.match(line):
            return f"llama.cpp stopped at an error that it does not expect: {_short(found[1])}."
        if found := _THROWN.search(line):
            return f"llama.cpp stopped at an error that it does not expect, {_short(found[1])}."
        if found := _ABORT.match(line):
            # A driver's reason stands above: "CUDA error: out of memory", …, "ggml-cuda.cu:98: CUDA error".
            above = [it.strip() for it in lines[:index] if it.strip().startswith(f"{found[3]}: ")]
            said = _short(above[-1] if above else found[3])
            return f"llama.cpp stopped itself: {said} ({found[1]}:{found[2]})."
        if _OF_THE_LIBRARY.match(line):
            return f"llama.cpp spoiled its own memory: {_short(line)}."
    return None


def _short(text: str) -> str:
    text = text.strip().strip("'").rstrip(".")
    return text if len(text) <= _COLUMNS else f"{text[:_COLUMNS]}…"

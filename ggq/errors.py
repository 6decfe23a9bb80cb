"""The one family of exceptions. Each says what happened, why, and what to type next."""

from __future__ import annotations

import signal
from collections.abc import Sequence

from ggq.system import limits


class GgqError(Exception):
    """An error that ggq explains.

    ``what``: what could not be done; ``why``: the cause, with numbers; ``next_step``: what to type or do.
    """

    exit_code = 1

    def __init__(self, what: str, why: str = "", next_step: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.next_step = next_step

    def __str__(self) -> str:
        return " ".join(part for part in (self.what, self.why, self.next_step) if part)


class UsageProblem(GgqError):
    """The request itself is wrong (an unknown preset, options that contradict each other)."""

    exit_code = 2


class CannotServe(UsageProblem):
    """The request is well formed, but this model or this text cannot serve it (a context that is too long, a
    text in another encoding)."""

    exit_code = 1


class HubProblem(GgqError):
    """The Hub refused, was out of reach, or sent something other than it announced."""


class Damaged(HubProblem):
    """What the Hub sent is not what it announced; what was made of it is worth nothing."""


class ToolchainProblem(GgqError):
    """llama.cpp's tools are missing, unusable, or could not be built."""


class CheckpointProblem(GgqError):
    """A checkpoint folder is incomplete, damaged, or of a kind that cannot be converted."""


class NeedsWeights(CheckpointProblem):
    """A model can only be planned after download: what its headers say is not enough."""


class ConversionProblem(GgqError):
    """The converter failed, or what it wrote does not behave as the checkpoint does."""


class GgufProblem(GgqError):
    """A GGUF file is damaged, or is not what it should be."""


class SourceChanged(GgqError):
    """A file that a run reads was overwritten, truncated, replaced or removed meanwhile."""


class OutputProblem(GgqError):
    """An output cannot be written: it exists, or its folder is read-only."""


class DiskFull(GgqError):
    """There is less free disk than a step needs."""


class DoesNotFit(GgqError):
    """Nothing that was asked for fits this machine's memory."""

    exit_code = 3


class ToolFailed(GgqError):
    """A child process ended badly.

    ``returncode``: its exit status, or the negative signal number that ended it;
    ``tail``: the last lines it printed; ``out_of_memory``: the kernel killed a process for want of memory
    while this one ran.
    """

    def __init__(
        self,
        command: Sequence[str],
        returncode: int,
        tail: Sequence[str],
        next_step: str = "",
        *,
        out_of_memory: bool = False,
    ) -> None:
        name = command[0].rsplit("/", 1)[-1]
        how = (
            f"was killed by {signal_name(-returncode)}" if returncode < 0 else f"ended with exit {returncode}"
        )
        if out_of_memory:
            how += ", by the kernel's out-of-memory killer"
        why = "\n".join(tail)
        if returncode < 0 and not out_of_memory and (limit := limits.why_killed(-returncode)) is not None:
            why, next_step = "\n".join(filter(None, (why, limit[0]))), limit[1]
        super().__init__(f"{name} {how}.", why, next_step)
        self.command = tuple(command)
        self.returncode = returncode
        self.tail = tuple(tail)
        self.out_of_memory = out_of_memory


def signal_name(number: int) -> str:
    """``11`` -> ``SIGSEGV``; an unknown number stays a number."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"

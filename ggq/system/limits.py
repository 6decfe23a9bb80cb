"""Limits that a shell, a batch system or a container sets to processes, as causes of a child's end."""

from __future__ import annotations

import math
import signal


def processor_seconds() -> float:
    """What a process may take of the processors; infinite without a limit."""
    try:
        import resource
    except ImportError:  # not POSIX
        return math.inf
    least = [limit for limit in resource.getrlimit(resource.RLIMIT_CPU) if limit != resource.RLIM_INFINITY]
    return min(least, default=math.inf)


def why_killed(number: int) -> tuple[str, str] | None:
    """The limit that a signal stands for, and what to do; None where it stands for none.

    SIGKILL comes at a hard limit of processor time, too: where there is such a limit, it is likelier than a
    want of memory, but not certain.
    """
    if number == getattr(signal, "SIGXFSZ", None):
        return (
            "A file grew beyond the limit of this shell (`ulimit -f`).",
            "Raise the limit, then run the same command again.",
        )
    seconds = processor_seconds()
    if number == getattr(signal, "SIGXCPU", None):
        allowed = "" if seconds == math.inf else f", {seconds:.0f} s"
    elif number == getattr(signal, "SIGKILL", None) and seconds != math.inf:
        allowed = f", {seconds:.0f} s, or memory ran out"
    else:
        return None
    return (
        f"It reached its limit of processor time (`ulimit -t`){allowed}.",
        "Raise the limit, then run the same command again.",
    )

"""For tests that press Ctrl-C."""

from __future__ import annotations

import signal


def heed_ctrl_c() -> None:
    """``preexec_fn`` of a child: a shell's background jobs ignore Ctrl-C, and their children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)

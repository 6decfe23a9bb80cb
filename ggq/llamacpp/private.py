"""That a build of ggq's is its user's alone: how it is made, and what becomes of one that is not."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ggq.errors import ToolchainProblem
from ggq.llamacpp import ownership, toolchain
from ggq.progress import Listener, Notice
from ggq.system import files


@contextlib.contextmanager
def for_oneself() -> Iterator[None]:
    """What is made in the block cannot be written by others, whatever this user's umask allows."""
    before = os.umask(0o077)
    os.umask(before | 0o022)
    try:
        yield
    finally:
        os.umask(before)


def discard_exposed(home: Path, listener: Listener) -> None:
    """Remove an earlier source and build that somebody else made or can change."""
    exposed = ownership.first_exposed(toolchain.own_parts(home))
    if exposed is None or exposed.as_ggq:
        return
    if exposed.path.is_relative_to(home) and exposed.path != home:
        listener(Notice(f"{exposed} llama.cpp is fetched and built again.", "warning"))
        with files.explain_os_error(home):
            (home / "build.json").unlink(missing_ok=True)
            for made in (home / "src", home / "build"):
                if made.is_symlink():
                    made.unlink()
                elif made.exists():
                    shutil.rmtree(made)
        exposed = ownership.first_exposed(toolchain.own_parts(home))
    if exposed is not None:
        raise ToolchainProblem(
            "llama.cpp is not built in a folder that somebody else can change.",
            str(exposed),
            f"Make {exposed.path} yours alone (its owner, and `chmod go-w`), or move ggq's files elsewhere.",
        )

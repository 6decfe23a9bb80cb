"""The page that a server shows at ``/``: llama.cpp's own where it was built, else a small one of ggq's."""

from __future__ import annotations

import mmap
from enum import StrEnum
from pathlib import Path

from ggq.llamacpp import toolchain as toolchains
from ggq.llamacpp.fit_params import SERVER
from ggq.llamacpp.toolchain import Toolchain

OWN = Path(__file__).with_name("page")
# A text of llama-server's that stands in it only where its page is compiled in (server-http.cpp).
_COMPILED_IN = b"gzip is not supported by this browser"
_BUILT = "web-ui"


class PageChoice(StrEnum):
    """Which page is shown."""

    AUTO = "auto"
    GGQ = "ggq"
    OFF = "off"


def folder(choice: PageChoice, toolchain: Toolchain, *, with_key: bool) -> Path | None:
    """The folder to serve; None: llama.cpp's page is inside its server, or no page is wanted.

    A page of several files cannot ask for a key before they are loaded: llama-server refuses the files.
    """
    if choice is PageChoice.OFF:
        return None
    if choice is PageChoice.AUTO:
        built = toolchains.home() / _BUILT
        if not with_key and toolchain.origin == "built" and (built / "index.html").is_file():
            return built
        if _is_compiled_in(toolchain):
            return None
    return OWN


def _is_compiled_in(toolchain: Toolchain) -> bool:
    """Whether llama-server, or a library of its own, holds the page."""
    program = toolchain.tool(SERVER)
    for file in (program, *toolchain.lib_dir.glob("libllama-server*")):
        try:
            with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                if content.find(_COMPILED_IN) >= 0:
                    return True
        except (OSError, ValueError):
            continue
    return False

"""What several tests of a run need is made once, whichever of xdist's workers asks first."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from benchmarks.common import convert_by_hand
from ggq.conversion import convert
from ggq.llamacpp.toolchain import Toolchain
from ggq.session import Session
from ggq.system import files


class Store:
    """A folder that all workers of one run share. Nobody changes what is in it: see ``own``."""

    def __init__(self, folder: Path) -> None:
        self._folder = files.make_folder(folder)

    def folder(self, name: str) -> Path:
        """A folder for what locks itself."""
        return files.make_folder(self._folder / name)

    def made(self, key: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
        """The folder that ``make`` has filled. ``key``: all that what is in it depends on."""
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        place = self._folder / digest
        with FileLock(self._folder / f"{digest}.lock"):
            if not place.is_dir():
                unfinished = self._folder / f"{digest}.{os.getpid()}"
                unfinished.mkdir()
                make(unfinished)
                unfinished.rename(place)
        return place

    def converted(
        self, toolchain: Toolchain, checkpoint: Path, outtype: str, *, by_hand: bool = False
    ) -> Path:
        """The checkpoint as a 16-bit or F32 GGUF. ``by_hand``: llama.cpp's converter alone has made it."""
        name = f"{checkpoint.name}-{outtype.upper()}.gguf"

        def make(folder: Path) -> None:
            if not by_hand:
                convert(checkpoint, folder / name, outtype=outtype, verify="off", session=Session(toolchain))
                return
            done = convert_by_hand(toolchain, checkpoint, folder / name, outtype)
            if done.returncode:
                raise done.failed()

        contents = {path.name: files.sha256_file(path) for path in checkpoint.iterdir() if path.is_file()}
        key = {"checkpoint": checkpoint.name, "files": contents, "commit": toolchain.commit}
        return self.made({**key, "outtype": outtype, "by_hand": by_hand}, make) / name


def own(file: Path, folder: Path, name: str = "") -> Path:
    """The same file under a folder of one's own, where others may be put beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / (name or file.name)
    link.hardlink_to(file)
    return link

"""The one way ggq starts Python: isolated from the current folder and from what a model brings along.

Python looks for modules in the current folder, in PYTHONPATH and beside the script before its own; a folder
named ``json`` beside a checkpoint would be taken for the module. A child of ggq starts with ``-I`` (no
current folder, no PYTHON* variables, no user site) in a folder of ggq's own. It is then given the places that
this process has, but for relative ones and the current folder: what a module system or a user's site holds
stays importable. ggq itself comes from where this process has it, whatever else bears its name.
"""

from __future__ import annotations

import contextlib
import json
import os
import site
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ggq.system import process, scratch

_PACKAGE = Path(__file__).resolve().parents[1]
_OF_PACKAGES = ("site-packages", "dist-packages")


def _current_folder() -> str:
    with contextlib.suppress(OSError):  # it may be gone
        return os.path.realpath(Path.cwd())
    return ""


_STARTED_IN = _current_folder()


def places() -> list[str]:
    """Where a child looks for modules: where this process does, but for relative places, the current folder
    and the one that ggq's package is in, unless these are Python's own folders of modules."""
    own = {
        os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")
    }
    refused = {_current_folder(), _STARTED_IN, os.path.realpath(_PACKAGE.parent)} - own
    refused = {folder for folder in refused if Path(folder).name not in _OF_PACKAGES}
    return [
        place for place in sys.path if Path(place).is_absolute() and os.path.realpath(place) not in refused
    ]


def run(
    module: str,
    *arguments: str | Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    **options: Any,
) -> process.Completed:
    """Run ``python -m module`` to its end, in ``cwd`` (a folder of ggq's own) or an empty one.

    ``options`` and what is raised: see ``process.run``.
    """
    like_this = [
        *(["-X", "utf8"] if sys.flags.utf8_mode else []),
        *(["-B"] if sys.dont_write_bytecode else []),
    ]
    told = {"places": places(), "package": str(_PACKAGE), "user_site": bool(site.ENABLE_USER_SITE)}
    # "-u": its words come at once.
    command = [
        sys.executable,
        "-I",
        "-u",
        *like_this,
        Path(__file__).with_name("launch.py"),
        module,
        *arguments,
    ]
    handed = {**(env or {}), "GGQ_LAUNCH": json.dumps(told)}
    if cwd is not None:
        return process.run(command, cwd=cwd, env=handed, **options)
    with scratch.folder("run") as empty:
        return process.run(command, cwd=empty, env=handed, **options)

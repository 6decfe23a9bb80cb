"""Where ggq keeps what is its own: cache and data, below the user's home or where XDG's variables say."""

from __future__ import annotations

import os
from pathlib import Path

from ggq.errors import OutputProblem

ELSEWHERE = "set XDG_CACHE_HOME to a folder of your own"


def cache() -> Path:
    """ggq's cache folder, which need not exist yet. Raises OutputProblem where the user has no home."""
    import platformdirs

    try:
        return platformdirs.user_cache_path("ggq")
    except RuntimeError as error:
        raise _homeless("XDG_CACHE_HOME") from error


def data() -> Path:
    """ggq's data folder, which need not exist yet. Raises OutputProblem where the user has no home."""
    import platformdirs

    try:
        return platformdirs.user_data_path("ggq")
    except RuntimeError as error:
        raise _homeless("XDG_DATA_HOME") from error


def logs() -> Path:
    """Where servers write their logs; it need not exist yet. Raises OutputProblem where the user has no
    home."""
    import platformdirs

    try:
        return platformdirs.user_log_path("ggq")
    except RuntimeError as error:
        raise _homeless("XDG_STATE_HOME") from error


def expanded(text: str) -> Path:
    """A path with its ``~``; one whose home is not known is left as it is written."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def shelter() -> str | None:
    """Give a user without a home one in the temporary folder, for ggq, its libraries and its children.

    Returns what to tell of it, None where there is a home. Containers run so: by a number without an entry.
    """
    try:
        Path.home()
    except RuntimeError:
        pass
    else:
        return None
    import tempfile

    user = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir()) / f"ggq-home-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if folder.is_symlink() or found.st_uid != user or found.st_mode & 0o022:
        folder = Path(tempfile.mkdtemp(prefix="ggq-home-"))  # somebody else has made it
    os.environ["HOME"] = str(folder)
    if not any(os.environ.get(name) for name in ("LOGNAME", "USER", "LNAME", "USERNAME")):
        os.environ["USER"] = str(user)  # torch asks for it by getpass.getuser()
    return f"This user has no home folder: {folder} is used for caches. HOME chooses another one."


def _homeless(variable: str) -> OutputProblem:
    uid = f" (number {os.getuid()})" if hasattr(os, "getuid") else ""
    return OutputProblem(
        "There is no home folder to keep a cache in.",
        f"HOME is not set, and the system does not know this user{uid}.",
        f"Set HOME, or {variable}, to a folder that can be written to.",
    )

"""The text that an imatrix is made from: a file, or one that every Python has."""

from __future__ import annotations

import platform
import tempfile
from pathlib import Path

from ggq import corpora
from ggq.errors import UsageProblem
from ggq.system import files, places
from ggq.system.texts import Text


def read(path: Path | None = None) -> Text:
    """Look a text through; None: that of ``default``. Raises UsageProblem, OutputProblem, DiskFull."""
    return corpora.read(default() if path is None else path)


def default() -> Path:
    """The language reference behind Python's ``help()``, in ggq's cache folder: English and code.

    It is there without a network, and it is no text that `ggq bench` measures quality on: a matrix made from
    that one would flatter its files. Another version of Python has a somewhat other text.

    Raises UsageProblem where Python comes without it, OutputProblem, DiskFull.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise UsageProblem(
            "There is no text to make an imatrix from.",
            f"This Python ({platform.python_version()}) comes without its language reference.",
            "Give a text file: --text FILE, or --imatrix-text FILE.",
        ) from error
    name = f"python-{platform.python_version()}-reference.txt"
    kept = places.cache() / "corpora" / "python" / name
    text = "\n\n".join(topics[key] for key in sorted(topics)).encode()
    if kept.is_file() and kept.read_bytes() == text:
        return kept
    with files.explain_os_error(kept, places.ELSEWHERE):
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".ggq-", dir=kept.parent) as work:
            fresh = Path(work) / name
            fresh.write_bytes(text)
            files.publish(fresh, kept)
    return kept

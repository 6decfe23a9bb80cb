"""Where a folder comes from, as far as its place tells."""

from __future__ import annotations

from pathlib import Path

from ggq import hub
from ggq.conversion.checkpoint_view import SourceInfo


def source_of(folder: Path) -> SourceInfo | None:
    """The repository and commit of a snapshot folder of the Hub cache; None for any other folder."""
    found = hub.snapshot_of(folder)
    return SourceInfo(*found) if found else None


def model_name(folder: Path) -> str:
    """The model's name: that of a snapshot folder's repository; else the folder's."""
    source = source_of(folder)
    return source.name if source else folder.resolve().name

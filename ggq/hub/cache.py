"""What the Hub cache holds, and its removal: shared with every other program that uses the Hub."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ggq.hub import client
from ggq.system import files

if TYPE_CHECKING:
    from huggingface_hub import HFCacheInfo

_KINDS = ("model", "dataset", "space")
_UNFINISHED = "*.incomplete"


@dataclass(frozen=True)
class CachedRepo:
    """A repository of the cache. ``disk_bytes``: that it takes, ``unfinished_bytes`` of them of downloads
    that were broken off; ``commits``: of which there are snapshots; ``used_at``: seconds since 1970."""

    repo_id: str
    kind: str
    folder: Path
    disk_bytes: int
    unfinished_bytes: int
    commits: tuple[str, ...]
    used_at: float


def repositories() -> list[CachedRepo]:
    """Everything in the Hub cache, the largest first."""
    root = client.cache_dir()
    if not root.is_dir():
        return []
    found = {Path(it.repo_path): it for it in _scanned(root).repos}
    made = []
    for folder in sorted(root.iterdir()):
        kind, *names = folder.name.split("--")
        if not folder.is_dir() or kind.removesuffix("s") not in _KINDS or not names:
            continue
        known = found.get(folder)
        unfinished = sum(it.stat().st_size for it in (folder / "blobs").glob(_UNFINISHED))
        made.append(
            CachedRepo(
                repo_id="/".join(names),
                kind=kind.removesuffix("s"),
                folder=folder,
                disk_bytes=(known.size_on_disk if known else _other_bytes(folder)) + unfinished,
                unfinished_bytes=unfinished,
                commits=tuple(sorted(it.commit_hash for it in known.revisions)) if known else (),
                used_at=known.last_accessed if known else folder.stat().st_mtime,
            )
        )
    return sorted(made, key=lambda it: -it.disk_bytes)


def _scanned(root: Path) -> HFCacheInfo:
    from huggingface_hub import scan_cache_dir

    return scan_cache_dir(root)


def _other_bytes(folder: Path) -> int:
    """What a repository without a snapshot takes, but for what is unfinished."""
    blobs = (it for it in (folder / "blobs").glob("*") if it.suffix != ".incomplete")
    return sum(it.stat().st_size for it in blobs if it.is_file())


def freed_bytes(repo: CachedRepo, commit: str | None = None) -> int:
    """What removing a repository, or one snapshot of it, would free."""
    if commit is None:
        return repo.disk_bytes
    return int(_scanned(client.cache_dir()).delete_revisions(commit).expected_freed_size)


def remove(repo: CachedRepo, commit: str | None = None) -> None:
    """Remove a repository, or one snapshot and what no other one needs. Raises OutputProblem."""
    with files.explain_os_error(repo.folder, "remove it by hand"):
        if commit is not None:
            _scanned(client.cache_dir()).delete_revisions(commit).execute()
            return
        lock = client.cache_dir() / ".locks" / repo.folder.name
        for place in _there([repo.folder, lock]):
            shutil.rmtree(place)


def _there(places: Sequence[Path]) -> Iterator[Path]:
    return (it for it in places if it.is_dir())

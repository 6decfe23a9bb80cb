"""``ggq cache``: what is in ggq's cache and the Hub's, and its removal."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from ggq.errors import UsageProblem
from ggq.hub import cache as hub_cache
from ggq.hub.cache import CachedRepo
from ggq.settings import Option
from ggq.system import files, places

_DAY_S = 86_400
_KEPT = "locks"  # of running programs; empty files
_SHORTEST_COMMIT = 7


def days(text: str) -> float:
    """``30``, ``30d`` or ``2w`` -> days. Raises ValueError."""
    found = re.fullmatch(r"(\d{1,6}(?:\.\d+)?)\s*(d|w)?", text.strip())
    if found is None:
        raise ValueError(f"{text!r} is not a number of days; write it as 30d or 2w.")
    return float(found[1]) * (7 if found[2] == "w" else 1)


@dataclass(frozen=True)
class CacheSettings:
    """What is listed, or removed."""

    names: tuple[str, ...] = ()
    older_than_days: Annotated[
        float | None,
        Option(
            "--older-than", parse=days, metavar="DAYS", help="Only what was not used for so long, as 30d."
        ),
    ] = None
    remove: Annotated[bool, Option("--remove", help="Remove what is listed; asks before.")] = False


@dataclass(frozen=True)
class Cached:
    """A thing in a cache. ``name``: by which it is removed; ``kind``: ``hub`` for what other programs use
    too, else ``ggq``; ``what``: in words; ``disk_bytes``: that its removal frees."""

    name: str
    kind: Literal["hub", "ggq"]
    what: str
    disk_bytes: int
    used_at: float
    folder: Path
    commit: str | None = None
    repo: CachedRepo | None = None


def cached(settings: CacheSettings | None = None) -> list[Cached]:
    """What is in the caches, the largest first; by name and age, where the settings say so.

    Raises UsageProblem for a name that is not there.
    """
    settings = settings or CacheSettings()
    everything = [*_of_hub(), *_of_ggq()]
    chosen = everything
    if settings.names:
        chosen = [it for name in settings.names for it in _named(name, everything)]
    if settings.older_than_days is not None:
        before = time.time() - settings.older_than_days * _DAY_S
        chosen = [it for it in chosen if it.used_at <= before]
    once = {(it.kind, it.name): it for it in chosen}
    return sorted(once.values(), key=lambda it: -it.disk_bytes)


def remove(chosen: Sequence[Cached]) -> int:
    """Remove things from the caches, and return the bytes that were freed. Raises OutputProblem."""
    freed = 0
    for it in chosen:
        if it.repo is not None:
            hub_cache.remove(it.repo, it.commit)
        else:
            with files.lock(it.folder), files.explain_os_error(it.folder, "remove it by hand"):
                if it.folder.is_dir():
                    shutil.rmtree(it.folder)
                else:
                    it.folder.unlink(missing_ok=True)
        freed += it.disk_bytes
    return freed


def _of_hub() -> Iterator[Cached]:
    for repo in hub_cache.repositories():
        parts = [repo.kind, f"{len(repo.commits)} snapshots" if len(repo.commits) != 1 else "1 snapshot"]
        if repo.unfinished_bytes:
            parts.append(f"{files.human_bytes(repo.unfinished_bytes)} unfinished")
        name = repo.repo_id if repo.kind == "model" else f"{repo.kind}s/{repo.repo_id}"
        yield Cached(name, "hub", ", ".join(parts), repo.disk_bytes, repo.used_at, repo.folder, repo=repo)


_WORDS = {
    "hollow": "a model without weights, for plan and recommend",
    "corpora": "a text to measure and calibrate with",
}


def _of_ggq() -> Iterator[Cached]:
    root = places.cache()
    for place in sorted(root.iterdir()) if root.is_dir() else ():
        if place.name == _KEPT:
            continue
        if place.is_dir():
            for own in sorted(place.iterdir()):
                words = _WORDS.get(place.name, "made again when it is needed")
                yield _own(f"{place.name}/{own.name}", words, own)
        else:
            yield _own(place.name, "remembered answers", place)


def _own(name: str, what: str, place: Path) -> Cached:
    inside = [it for it in place.rglob("*") if it.is_file()] if place.is_dir() else [place]
    taken = sum(files.allocated_bytes(it) or 0 for it in inside)
    used_at = max((it.stat().st_mtime for it in inside), default=place.stat().st_mtime)
    return Cached(name, "ggq", what, taken, used_at, place)


def _named(name: str, everything: Sequence[Cached]) -> list[Cached]:
    found = [it for it in everything if it.name == name]
    repo_id, _, commit = name.partition("@")
    if not found and commit:
        found = [one for it in everything if it.name == repo_id and (one := _snapshot(it, commit))]
    if not found:
        raise UsageProblem(
            f"No cache holds {name}.", "", "`ggq cache` lists what there is; one snapshot is org/name@commit."
        )
    return found


def _snapshot(it: Cached, commit: str) -> Cached | None:
    """One snapshot of a repository, by the beginning of its commit."""
    if it.repo is None or len(commit) < _SHORTEST_COMMIT:
        return None
    known = [one for one in it.repo.commits if one.startswith(commit)]
    if len(known) != 1:
        return None
    freed = hub_cache.freed_bytes(it.repo, known[0])
    return Cached(
        f"{it.name}@{known[0][:12]}", "hub", "1 snapshot", freed, it.used_at, it.folder, known[0], it.repo
    )

"""Whether somebody else can change the programs and Python modules that ggq is about to run.

Trusted are root, this user, the owner of ``/`` and the owner of ggq's own files: each of them can change what
runs here anyway. A path is exposed when it belongs to anybody else, or when others may write to it. Two kinds
of writable paths are not exposed: a folder above a build that has the sticky bit (as /tmp has), in which
nobody can replace what belongs to another; and one whose group is root's, or the private group of a trusted
user (of his name or number, without other members), as systems with umask 002 have it.

It reads owners and mode bits. It does not see access control lists, who has a group as his primary one, and
who could reach a network's disk by other ways. Systems without such bits are not looked at.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Exposed:
    """A path that others than the trusted can change. ``whose``: what is said of it after its name.

    ``as_ggq``: they can change ggq's own package, too, so that refusing the path would protect nobody.
    """

    path: Path
    whose: str
    as_ggq: bool

    def __str__(self) -> str:
        return f"{self.path} {self.whose}."


@dataclass(frozen=True)
class Part:
    """A file or folder of a build. ``counts``: which names directly in it do; None: all, and all below."""

    path: Path
    counts: Callable[[str], bool] | None = None


def first_exposed(parts: Iterable[Part]) -> Exposed | None:
    """The first exposed path: a folder above a part, the part, what is in it. What is not there is none.

    One that is not ``as_ggq`` comes before those that are.
    """
    if os.name != "posix":
        return None
    trusted = frozenset({0, os.getuid(), Path("/").stat().st_uid, _PACKAGE.stat().st_uid})
    seen: set[Path] = set()
    first: Exposed | None = None
    for part in parts:
        for path, above in _paths(part, seen):
            found = _look(path, trusted, sticky_is_enough=above)
            if found is not None and not found.as_ggq:
                return found
            first = first or found
    return first


def _paths(part: Part, seen: set[Path]) -> Iterator[tuple[str | Path, bool]]:
    """What is to be looked at for a part, each with whether it is above it."""
    for path in _way(Path(os.path.normpath(part.path.absolute())), seen):
        yield path, True
    yield os.path.realpath(part.path), False
    yield from _below(part, seen)


def _way(path: Path, seen: set[Path]) -> Iterator[Path]:
    """The folders above a path and the path, but for those seen before; of a link, the way to its target."""
    for walked in (*reversed(path.parents), path):
        if walked in seen:
            continue
        seen.add(walked)
        yield walked
        if walked.is_symlink():
            target = Path(os.path.realpath(walked.parent)) / walked.readlink()
            yield from _way(Path(os.path.normpath(target)), seen)
            yield from _way(Path(os.path.realpath(target)), seen)


def _below(part: Part, seen: set[Path]) -> Iterator[tuple[str | Path, bool]]:
    try:
        with os.scandir(part.path) as found:
            entries = [entry for entry in found if part.counts is None or part.counts(entry.name)]
    except OSError:  # no folder, or one that cannot be listed; the path itself is looked at
        return
    for entry in entries:
        yield entry.path, False
        if entry.is_symlink():
            target = str(Path(entry.path).readlink())
            # As of libllama.so: one of these entries.
            if "/" in target or not (part.counts is None or part.counts(target)):
                yield from ((path, True) for path in _way(Path(entry.path).absolute(), seen))
        elif part.counts is None and entry.is_dir(follow_symlinks=False):
            yield from _below(Part(Path(entry.path)), seen)


def _look(path: str | Path, trusted: frozenset[int], *, sticky_is_enough: bool) -> Exposed | None:
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return Exposed(Path(path), f"cannot be looked at ({error.strerror or error})", as_ggq=False)
    mode = status.st_mode
    if status.st_uid not in trusted:
        whose = f"belongs to {_user(status.st_uid)}"
    elif stat.S_ISLNK(mode) or (sticky_is_enough and mode & stat.S_ISVTX):
        return None
    elif mode & stat.S_IWOTH:
        whose = "can be written by every user"
    elif not _harmless(status.st_gid, trusted):
        whose = f"can be written by the group {_group(status.st_gid)}"
    else:
        return None
    return Exposed(Path(path), whose, _as_ggq(Path(path), status, trusted))


def _as_ggq(path: Path, status: os.stat_result, trusted: frozenset[int]) -> bool:
    own = _PACKAGE.stat()
    if _PACKAGE.is_relative_to(path) or own.st_mode & stat.S_IWOTH:
        return True
    by_group_alone = status.st_uid in trusted and not status.st_mode & stat.S_IWOTH
    return bool(by_group_alone and own.st_mode & stat.S_IWGRP and own.st_gid == status.st_gid)


def _harmless(group: int, trusted: frozenset[int]) -> bool:
    """Whether a group is root's or a trusted user's own (of macOS: its administrators, who may do all)."""
    import grp

    if group == 0 or (sys.platform == "darwin" and group == 80):
        return True
    try:
        found = grp.getgrgid(group)
        name, members = found.gr_name, set(found.gr_mem)
    except KeyError:
        name, members = "", set()
    names = {user: _name(user) for user in trusted}
    # The number tells where the system has no name for the user or the group, as in containers.
    own = group in names if not name or not names.get(group, name) else name in names.values()
    return own and members <= set(names.values())


def _name(user: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return ""


def _user(number: int) -> str:
    return f"{_name(number)} (user {number})" if _name(number) else f"user {number}"


def _group(number: int) -> str:
    import grp

    try:
        return f"{grp.getgrgid(number).gr_name} ({number})"
    except KeyError:
        return str(number)

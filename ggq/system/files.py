"""Files that appear whole or not at all: staging, digests, locks, disk space, JSON."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ggq.errors import DiskFull, GgqError, OutputProblem
from ggq.progress import Listener, Notice, Step, silent
from ggq.system import locks, places

STAGING = ".ggq-partial"
_BLOCK = 1 << 20


def human_bytes(count: float) -> str:
    """``4920000000`` -> ``4.92 GB``: decimal units, three digits, as disks are sold."""
    if abs(count) < 999.5:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB", "TB"):
        count /= 1000
        if abs(count) < 999.5 or unit == "TB":
            break
    return f"{count:.{2 if abs(count) < 9.995 else 1 if abs(count) < 99.95 else 0}f} {unit}"


def sha256_file(path: Path, listener: Listener = silent, step: str = "") -> str:
    """Hex sha256 of a file, read in 1 MiB blocks; ``step`` names it to the listener. Raises OSError."""
    with path.open("rb") as stream:
        return sha256_stream(stream, listener, step)


def sha256_stream(stream: BinaryIO, listener: Listener = silent, step: str = "") -> str:
    """Hex sha256 of what is left in an open file. Raises OSError."""
    digest = hashlib.sha256()
    total = os.fstat(stream.fileno()).st_size
    done = 0
    while block := stream.read(_BLOCK):
        digest.update(block)
        done += len(block)
        if step:
            listener(Step(step, done, total))
    return digest.hexdigest()


def free_bytes(folder: Path) -> int:
    """Bytes that this user may still write below ``folder`` (which need not exist yet)."""
    return shutil.disk_usage(_nearest(folder)).free


def same_disk(one: Path, other: Path) -> bool:
    """Whether two folders, which need not exist yet, would take the same disk's space."""
    return _nearest(one).stat().st_dev == _nearest(other).stat().st_dev


def _nearest(folder: Path) -> Path:
    """The folder, or the first above it that is there."""
    probe = folder.absolute()
    while not probe.exists():
        probe = probe.parent
    return probe


def refuse_unwritable(folder: Path) -> None:
    """Say what ``make_folder`` would, without making anything: what the permissions tell. Raises
    OutputProblem."""
    with explain_os_error(folder):
        nearest = _nearest(folder)
        if not nearest.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def require_space(
    folder: Path, needed_bytes: int, what: str, elsewhere: str = "choose another folder"
) -> None:
    """Refuse a step that cannot end well. Raises DiskFull with the numbers.

    ``elsewhere``: how a person would put the output on another disk.
    """
    free = free_bytes(folder)
    if free < needed_bytes:
        raise DiskFull(
            f"There is not enough disk for {what}.",
            f"It needs {human_bytes(needed_bytes)}; {_without_staging(folder)} has {human_bytes(free)} free.",
            f"Free {human_bytes(needed_bytes - free)} there, or {elsewhere}.",
        )


def _without_staging(folder: Path) -> Path:
    """The folder that a person knows."""
    return Path(*folder.parts[: folder.parts.index(STAGING)]) if STAGING in folder.parts else folder


_ELSEWHERE = "choose another folder with -o/--output or --outdir"


def make_folder(folder: Path, elsewhere: str = _ELSEWHERE) -> Path:
    """Create an output folder and prove that it can be written to. Raises OutputProblem, DiskFull.

    ``elsewhere``: as in ``require_space``.
    """
    with explain_os_error(folder, elsewhere):
        folder.mkdir(parents=True, exist_ok=True)
        handle, probe = tempfile.mkstemp(prefix=".ggq-", dir=folder)
        os.close(handle)
        Path(probe).unlink()
    return folder


@contextlib.contextmanager
def explain_os_error(path: Path, elsewhere: str = _ELSEWHERE) -> Iterator[None]:
    """Turn the errors of writing below ``path`` into words. ``elsewhere``: as in ``require_space``."""
    try:
        yield
    except GgqError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"The disk is full: {path} could not be written.",
                f"{human_bytes(free_bytes(path))} are free there.",
                "Free some space, then run the same command again: it resumes.",
            ) from error
        raise OutputProblem(
            f"{path} cannot be written.",
            f"{error.strerror or error}.",
            f"{elsewhere[:1].upper()}{elsewhere[1:]}, or fix its permissions.",
        ) from error


@contextlib.contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """A fresh folder beside the outputs, on the same file system; removed when the block ends.

    Leftovers of a killed run are removed first, so hold ``lock(folder)``.
    """
    base = folder / STAGING
    with explain_os_error(folder):
        shutil.rmtree(base, ignore_errors=True)
        base.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=base))
    try:
        yield fresh
    finally:
        shutil.rmtree(base, ignore_errors=True)


def publish(partial: Path, target: Path, *, durable: bool = True) -> None:
    """Give a finished file its final name: fsync, rename, fsync of the folder.

    Without ``durable``, and inside a staging folder, nothing is synced (a second per GB): for a file that a
    digest proves before it is used again.
    """
    durable = durable and STAGING not in target.parts
    with explain_os_error(target):
        if durable:
            with partial.open("rb") as stream:
                os.fsync(stream.fileno())
        partial.replace(target)
        if durable:
            _sync_folder(target.parent)


def write_json(target: Path, value: Any) -> None:
    """Write JSON (indented, keys in the given order) atomically."""
    with explain_os_error(target):
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        partial = Path(name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                json.dump(value, stream, indent=2, ensure_ascii=False)
                stream.write("\n")
                stream.flush()
                os.fsync(stream.fileno())
            partial.chmod(0o644)
            partial.replace(target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)


_PROBE_BYTES = 64 << 20


def require_holes(folder: Path, elsewhere: str = "choose another folder") -> None:
    """Refuse a file system that would fill a sparse file. Raises OutputProblem with the numbers.

    ``folder`` exists and can be written to; ``elsewhere``: as in ``require_space``.
    """
    with explain_os_error(folder, elsewhere), tempfile.TemporaryFile(dir=folder) as probe:
        probe.truncate(_PROBE_BYTES)
        taken = _taken_bytes(os.fstat(probe.fileno()))
    if taken is None or taken > _PROBE_BYTES // 16:
        raise OutputProblem(
            f"The file system of {folder} has no sparse files.",
            f"An empty file of {human_bytes(_PROBE_BYTES)} takes {human_bytes(taken)} of disk there."
            if taken is not None
            else "This system does not tell what a file takes of its disk.",
            f"{elsewhere[:1].upper()}{elsewhere[1:]}, on a file system such as ext4, XFS, Btrfs or APFS.",
        )


def allocated_bytes(file: Path) -> int | None:
    """What a file takes of its disk, without what is empty; None where the system does not tell."""
    return _taken_bytes(file.stat())


def _taken_bytes(stat: os.stat_result) -> int | None:
    blocks: int | None = getattr(stat, "st_blocks", None)
    return None if blocks is None else blocks * 512  # POSIX leaves the unit open; it is 512 on all of ours


def write_hollow(target: Path, header: bytes, file_bytes: int) -> None:
    """Write a file that begins with ``header`` and is empty from there to ``file_bytes``. Raises OSError."""
    with target.open("wb") as stream:
        stream.write(header)
        stream.truncate(file_bytes)


# A ggq that was killed while it started a tool holds its locks until that process is on its own.
_PATIENCE_S = 1.0


@contextlib.contextmanager
def lock(folder: Path, waiting: Listener | None = None, *, listener: Listener = silent) -> Iterator[None]:
    """Hold a folder for one ggq at a time. Raises OutputProblem when another one holds it.

    With ``waiting`` it waits instead, and tells this listener where that takes long. A staging folder is held
    with the folder that it stands in. ``listener`` is told where the file system has no locks.
    """
    if STAGING in folder.parts:
        yield
        return
    import filelock

    # The lock is in the cache folder, so that nothing of ggq's is left beside the user's files.
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    held = places.cache() / "locks"
    with explain_os_error(held, places.ELSEWHERE):
        held.mkdir(parents=True, exist_ok=True)
        guard = locks.file_lock(held / f"{name}.lock")
        try:
            guard.acquire(timeout=_PATIENCE_S)
        except filelock.Timeout as error:
            if waiting is None:
                raise OutputProblem(
                    f"Another ggq is at work in {folder}.",
                    "Two at once would overwrite each other's files.",
                    f"If none is (it was killed), delete {guard.lock_file}."
                    if locks.is_file(guard)
                    else "Wait until it ends, or choose another folder.",
                ) from error
            waiting(Notice(f"Another ggq is at work in {folder}: this one waits for it."))
            guard.acquire()
    if locks.is_file(guard):
        listener(Notice(f"The file system of {held} has no locks; a file there stands for one."))
    try:
        yield
    finally:
        guard.release()


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

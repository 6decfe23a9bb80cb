"""One file from the Hub into the cache's blobs: resumed, retried, and proven by its digest.

huggingface_hub 2.4 throws a partial file away when its process ends (it writes under a name of its own each
time), over Xet as over HTTP. So the transfer is ours: its session, its headers, its errors and its locks, but
a partial file that stays as ``<digest>.incomplete``, as earlier releases kept it, and goes on with a Range.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from ggq.errors import HubProblem
from ggq.hub import client
from ggq.hub.client import Retry
from ggq.hub.range_request import LONGEST_RESPONSE_BYTES, RangeIgnored, blocks
from ggq.hub.repository import RemoteFile, RemoteModel
from ggq.progress import Listener, Notice
from ggq.system import files, locks

_BLOCK = 1 << 20


class Stopped(Exception):
    """The download was called off: another file failed, or Ctrl-C."""


class _Partial:
    """The growing file: what is on disk, and the digest of it."""

    def __init__(self, path: Path, file: RemoteFile, grown: Callable[[int], None]) -> None:
        self._stream = path.open("a+b")
        self._file = file
        self._grown = grown
        if path.stat().st_size > file.file_bytes:
            self.restart()
        else:
            self._take_up()

    def _take_up(self) -> None:
        self._digest, self.have = new_digest(self._file), 0
        self._stream.seek(0)
        while block := self._stream.read(_BLOCK):
            self._digest.update(block)
            self.have += len(block)
            self._grown(self.have)

    def restart(self) -> None:
        self._stream.truncate(0)
        self._digest, self.have = new_digest(self._file), 0
        self._grown(0)

    def append(self, block: bytes) -> None:
        self._stream.write(block)
        self._digest.update(block)
        self.have += len(block)
        self._grown(self.have)

    @property
    def hexdigest(self) -> str:
        return self._digest.hexdigest()

    def close(self) -> None:
        self._stream.close()


def partial_path(repo: RemoteModel, file: RemoteFile) -> Path:
    """Where an unfinished download of this file waits for the next attempt."""
    return repo.home / "blobs" / f"{file.blob_name}.incomplete"


def fetch(
    repo: RemoteModel,
    file: RemoteFile,
    *,
    retry: Retry,
    listener: Listener,
    grown: Callable[[int], None],
    stop: threading.Event,
) -> int:
    """Bring one file into the cache's blobs, whole and proven, and return the bytes received for it.

    ``grown`` is told how many bytes of it are on disk. Raises HubProblem (a wrong digest or size),
    huggingface_hub's errors, OSError, and Stopped.
    """
    partial = partial_path(repo, file)
    blob = partial.with_suffix("")
    partial.parent.mkdir(parents=True, exist_ok=True)
    with _locked(repo, file, listener, stop):
        if blob.is_file() and blob.stat().st_size == file.file_bytes:
            grown(file.file_bytes)  # another process was quicker
            return 0
        found = partial.stat().st_size if partial.exists() else 0
        with contextlib.closing(_Partial(partial, file, grown)) as part:
            received = _complete(repo, file, part, retry, listener, stop)
            if found and part.hexdigest != file.blob_name:
                listener(Notice(f"{file.path}: the part kept from before was damaged; starting afresh."))
                part.restart()
                received += _complete(repo, file, part, retry, listener, stop)
            digest = part.hexdigest
        if digest != file.blob_name:
            partial.unlink()
            raise HubProblem(
                f"{file.path} of {repo.repo_id} arrived damaged, and was deleted.",
                f"Its digest is {digest[:16]}…; the Hub announces {file.blob_name[:16]}….",
                "Run the same command again. If it stays so, a proxy or mirror on the way alters files.",
            )
        files.publish(partial, blob)
    return received


def _complete(
    repo: RemoteModel,
    file: RemoteFile,
    part: _Partial,
    retry: Retry,
    listener: Listener,
    stop: threading.Event,
) -> int:
    """Receive until the partial file has its full size; return the bytes received."""
    from huggingface_hub.utils import httpx

    received, failures, furthest = 0, 0, part.have

    def take(block: bytes) -> None:
        nonlocal received
        if stop.is_set():
            raise Stopped
        received += len(block)
        if part.have + len(block) > file.file_bytes:
            part.restart()
            raise HubProblem(
                f"{file.path} of {repo.repo_id} is longer than the Hub announces.",
                f"More than {file.file_bytes:,} bytes came; what came was deleted.",
                "Run the same command again. If it stays so, a proxy or mirror on the way alters files.",
            )
        part.append(block)

    while part.have < file.file_bytes:
        end = min(file.file_bytes, part.have + LONGEST_RESPONSE_BYTES)
        try:
            with contextlib.closing(blocks(repo, file, part.have, end, retry.silence_s)) as coming:
                for block in coming:
                    take(block)
        except RangeIgnored:
            part.restart()
        except httpx.HTTPError as error:
            failures = 1 if part.have > furthest else failures + 1
            furthest = max(furthest, part.have)
            client.pause(retry, failures, error, listener, stop)
        if stop.is_set():
            raise Stopped
    return received


@contextlib.contextmanager
def _locked(repo: RemoteModel, file: RemoteFile, listener: Listener, stop: threading.Event) -> Iterator[None]:
    """huggingface_hub's own lock for a blob, so that no two programs fetch it at once."""
    import filelock

    path = client.cache_dir() / ".locks" / repo.home.name / f"{file.blob_name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    told = False
    lock = locks.file_lock(path)
    with contextlib.ExitStack() as held:
        while True:
            try:
                held.enter_context(lock.acquire(timeout=0.5))
                break
            except filelock.Timeout:
                if stop.is_set():
                    raise Stopped from None
                if not told:
                    listener(Notice(f"{file.path}: another program is downloading it; waiting for that."))
                told = True
        yield


def new_digest(file: RemoteFile) -> hashlib._Hash:
    """Of the kind that the Hub announces for this file."""
    if file.sha256:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % file.file_bytes, usedforsecurity=False)

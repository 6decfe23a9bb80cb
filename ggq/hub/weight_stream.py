"""The weights of a repository read where they are, tensor by tensor: nothing of them is kept."""

from __future__ import annotations

import threading
from collections.abc import Generator
from pathlib import Path

from ggq.errors import Damaged, HubProblem
from ggq.hub import client
from ggq.hub.client import DEFAULT_RETRY, Retry
from ggq.hub.file_download import new_digest
from ggq.hub.headers import HEADER_LIMIT_BYTES
from ggq.hub.range_request import LONGEST_RESPONSE_BYTES, Place, RangeIgnored, blocks
from ggq.hub.repository import RemoteFile, RemoteModel
from ggq.progress import Listener, silent

# What a converter passes over, a small tensor as a rule, is read all the same: so the file is read whole.
_GAP_BYTES = 1 << 20


class RemoteWeights:
    """The safetensors files of ``model`` that ``gather`` made hollow in the folder ``hollow``, with their
    headers. ``received_bytes`` were read.

    As long as a file is read from front to back, one answer of the server serves many tensors, and a file
    that was read whole is compared with the digest that the Hub announces. One thread may read at a time.
    """

    def __init__(
        self, model: RemoteModel, hollow: Path, *, retry: Retry = DEFAULT_RETRY, listener: Listener = silent
    ) -> None:
        self._model = model
        self._retry = retry
        self._listener = listener
        self._readings = {
            file.path: _Reading(file, hollow / file.path)
            for file in model.files
            if file.path.endswith(".safetensors") and _is_hollow(hollow / file.path)
        }
        self._stop = threading.Event()
        self._answer: _Answer | None = None
        self.received_bytes = 0

    def close(self) -> None:
        """Read no more; from any thread."""
        self._stop.set()

    @property
    def files(self) -> tuple[str, ...]:
        """Which they are."""
        return tuple(self._readings)

    @property
    def proven(self) -> tuple[str, ...]:
        """The files that were read whole and have the digest that the Hub announces."""
        return tuple(path for path, reading in self._readings.items() if reading.is_proven)

    @property
    def unproven(self) -> tuple[str, ...]:
        """The files of which that cannot be said: they were not, or not all, read in their own order."""
        return tuple(path for path, reading in self._readings.items() if not reading.is_proven)

    def read(self, path: str, start: int, size: int) -> Generator[bytes]:
        """``size`` bytes of a file, from ``start`` on, as they arrive. What breaks off goes on where it was.

        Raises HubProblem; Damaged before the last byte of a file that is not what the Hub announces.
        """
        from huggingface_hub.errors import HfHubHTTPError
        from huggingface_hub.utils import httpx

        reading, end = self._readings[path], start + size
        at = reading.begin(start)
        failures = 0
        with client.explained(self._model.repo_id, kind=self._model.kind):
            while at < end and not self._stop.is_set():
                try:
                    block = self._next(reading, at, end)
                except RangeIgnored as error:
                    raise HubProblem(
                        f"{client.endpoint()} does not send parts of files.",
                        f"Asked for a range of {path}, it sent something else.",
                        "Leave --stream out: the checkpoint is downloaded then.",
                    ) from error
                except httpx.HTTPError as error:
                    self._hang_up()
                    known, reading.place.url = reading.place.url, None  # the Hub may tell another
                    if known and isinstance(error, HfHubHTTPError):
                        continue  # it has expired
                    failures += 1
                    client.pause(self._retry, failures, error, self._listener, self._stop)
                    continue
                failures = 0
                self.received_bytes += len(block)
                reading.take(block)
                skipped = max(0, start - at)
                at += len(block)
                yield block[skipped:]

    def _next(self, reading: _Reading, at: int, end: int) -> bytes:
        """Some bytes before ``end``: of the answer under way, or of a new one."""
        answer = self._answer
        if answer is None or answer.reading is not reading or answer.at != at:
            self._hang_up()
            last = end
            if reading.is_in_order:
                last = min(reading.file.file_bytes, at + LONGEST_RESPONSE_BYTES)
            coming = blocks(self._model, reading.file, at, last, self._retry.silence_s, reading.place)
            answer = self._answer = _Answer(reading, at, last, coming)
        block = answer.take(end - at)
        if answer.at >= answer.end:
            self._hang_up()
        return block

    def _hang_up(self) -> None:
        if self._answer is not None:
            self._answer.close()
            self._answer = None


def _is_hollow(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


class _Answer:
    """What the server sends: a file from ``at`` to before ``end``."""

    def __init__(self, reading: _Reading, at: int, end: int, coming: Generator[bytes]) -> None:
        self.reading = reading
        self.at = at
        self.end = end
        self._coming = coming
        self._rest = b""

    def take(self, most: int) -> bytes:
        """The next bytes; at least one, unless the server sends fewer than it was asked for."""
        block = self._rest or next(self._coming, b"")
        block, self._rest = block[:most], block[most:]
        self.at += len(block)
        return block

    def close(self) -> None:
        self._coming.close()


class _Reading:
    """Of one file: where it is served, where the last reading ended, and the digest of all before that.
    ``is_in_order``: this reading goes on there."""

    def __init__(self, file: RemoteFile, hollow: Path) -> None:
        self.file = file
        self.place = Place()
        self.is_in_order = True
        self.is_proven = False
        self._digest = new_digest(file)
        with hollow.open("rb") as stream:
            header = stream.read(8)
            header += stream.read(min(int.from_bytes(header, "little"), HEADER_LIMIT_BYTES))
        self._digest.update(header)
        self._at = len(header)
        self._is_whole = True  # so far

    def begin(self, start: int) -> int:
        """Where to read from for what begins at ``start``: there, or a little before."""
        self.is_in_order = self._at <= start <= self._at + _GAP_BYTES
        if not self.is_in_order:
            self._at, self._is_whole = start, False
        return self._at

    def take(self, block: bytes) -> None:
        """The next bytes. Raises Damaged."""
        self._at += len(block)
        if not self._is_whole:
            return
        self._digest.update(block)
        if self._at == self.file.file_bytes:
            digest = self._digest.hexdigest()
            if digest != self.file.blob_name:
                raise Damaged(
                    f"{self.file.path} arrived damaged.",
                    f"Its digest is {digest[:16]}…; the Hub announces {self.file.blob_name[:16]}….",
                    "Run the same command again. If it stays so, a proxy or mirror on the way alters files.",
                )
            self.is_proven = True

"""The weights of a conversion that are not on the disk: what its child process asks for, as it arrives."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Protocol

from ggq.conversion.pipes import ChildEnded, Feed


class Weights(Protocol):
    """Of a checkpoint whose ``files``, some of its safetensors in its top folder, are hollow."""

    @property
    def files(self) -> Sequence[str]: ...

    def read(self, path: str, start: int, size: int, /) -> Generator[bytes]:
        """``size`` bytes of a file, from ``start`` on, as they arrive."""


class Feeder:
    """Serves one child process, in a thread of its own. ``on_failure``: called when the weights cannot be
    had; ``failure`` is then what they raised. ``files``: those it serves."""

    def __init__(self, folder: Path, weights: Weights, on_failure: Callable[[], None]) -> None:
        self._feed = Feed(folder)
        self._weights = weights
        self._on_failure = on_failure
        self._wanted: queue.SimpleQueue[tuple[str, int, int] | None] = queue.SimpleQueue()
        self.files = weights.files
        self.failure: BaseException | None = None

    def start(self) -> None:
        """Raises OSError."""
        self._feed.make()
        # Nobody waits for it: where it hangs on a silent network, the process may end all the same.
        threading.Thread(target=self._serve, daemon=True).start()

    def want(self, file: str, offset: int, size: int) -> None:
        """Serve a range of a weight file, after those before it."""
        self._wanted.put((file, offset, size))

    def end(self) -> None:
        """The child has ended."""
        self._wanted.put(None)

    def _serve(self) -> None:
        handle = None
        try:
            while (wanted := self._wanted.get()) is not None:
                if handle is None:
                    handle = self._feed.to_child()
                with closing(self._weights.read(*wanted)) as coming:
                    for block in coming:
                        self._feed.write(handle, block)
        except BaseException as failure:
            if not isinstance(failure, ChildEnded):  # whose end tells more
                self.failure = failure
                self._on_failure()
        finally:
            if handle is not None:
                os.close(handle)

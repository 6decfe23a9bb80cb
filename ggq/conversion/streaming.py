"""Checkpoint -> base GGUF that is never on the disk: its header in a file, its data out of the converter.

The converter's child process writes the file with no data, then hands the tensors over through a
pipe, one after the other. It runs beside this process, which reads.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ggq.checkpoint import checkpoint
from ggq.conversion.checkpoint_view import SourceInfo
from ggq.conversion.child_process import Child, Target
from ggq.conversion.conversion import remark, resolve_outtype
from ggq.conversion.pipes import Pipe
from ggq.conversion.settings import Verify
from ggq.conversion.verification import Verification
from ggq.conversion.weight_feeder import Feeder, Weights
from ggq.gguf import file as gguf_file
from ggq.gguf.file import GgufFile
from ggq.gguf.header import TensorInfo
from ggq.session import Session
from ggq.system import process

_PATIENCE_S = 0.05  # between looks at whether the child still lives
_SCRATCH_BYTES = 1 << 20


class StreamedBase(contextlib.AbstractContextManager["StreamedBase"]):
    """A checkpoint as the source of the one pass (see ``tensor_source``): its conversion begins on entering,
    and has ended on leaving, well or by force.

    ``work``: a staging folder (``files.require_holes``); ``identity``: what tells this base from
    others; ``weights``: of a checkpoint whose files are hollow. ``seconds`` and ``peak_memory_bytes``
    are the child's, when it has ended.

    Raises CheckpointProblem, ConversionProblem, UsageProblem, OutputProblem, and what ``weights`` raises,
    from each method.
    """

    def __init__(
        self,
        checkpoint_folder: Path,
        work: Path,
        identity: Callable[[], str],
        *,
        outtype: str,
        source: SourceInfo | None,
        session: Session,
        weights: Weights | None = None,
    ) -> None:
        given = checkpoint.read(checkpoint_folder)
        checkpoint.require_convertible(given)
        self._given = given
        self._identity = identity
        self.is_remote = weights is not None
        self._listener = session.listener
        self._file = work / "header.gguf"
        self._pipe = Pipe(work)
        self._feeder = Feeder(work, weights, self._stop) if weights else None
        kind = resolve_outtype(given, outtype)
        target = Target(self._file, kind, pipe=self._pipe, feeder=self._feeder)
        self._child = Child(given, target, session, source)
        self._thread = threading.Thread(target=self._convert, daemon=True)
        self._told = threading.Event()  # the header is written, or the child has ended
        self._ended = threading.Event()
        self._failure: BaseException | None = None
        self._process_id: int | None = None
        self._cancelled = False
        self._handle: int | None = None
        self._base: GgufFile | None = None
        self._ahead: Iterator[TensorInfo] = iter(())

    def __enter__(self) -> StreamedBase:
        self._pipe.make()
        if self._feeder is not None:
            self._feeder.start()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None and self._handle is not None:
                self._thread.join()
        finally:
            self._end()
            if self._handle is not None:
                os.close(self._handle)
        if kind is None and not self._cancelled and self._failure is not None:
            raise self._failure

    @property
    def base(self) -> GgufFile:
        """The header, as soon as it is there."""
        if self._base is None:
            self._told.wait()
            if self._failure is not None:
                raise self._failure
            self._base = gguf_file.read(self._file)
            remark(self._given, self._base, self.verification, self._listener)
        return self._base

    @property
    def identity(self) -> str:
        # What was not proven must not be mixed with what was.
        return f"{self._identity()}{' from afar' if self.is_remote else ''}"

    @property
    def verification(self) -> Verification:
        """Nothing is checked but what the converter checks: there is no file to load."""
        assert self._base is not None
        return Verification("off", len(self._base.tensors), self._base.parameter_count)

    @property
    def completed(self) -> Mapping[str, Any]:
        """What the checkpoint's config lacked and the converter was given."""
        return self._child.completed

    @property
    def seconds(self) -> float:
        return self._child.seconds

    @property
    def peak_memory_bytes(self) -> int | None:
        return self._child.peak_memory_bytes

    @contextlib.contextmanager
    def open(self, tensor: TensorInfo) -> Iterator[_Data]:
        if self._handle is None:
            self._begin(tensor)
        for passed in self._ahead:
            data = _Data(self, passed.data_bytes)
            if passed.name == tensor.name:
                yield data
                break
            data.skip()

    def _begin(self, tensor: TensorInfo) -> None:
        names = [each.name for each in self.base.tensors]
        self._ahead = iter(self.base.tensors[names.index(tensor.name) :])
        self._handle = self._pipe.begin(tensor.name)

    def read(self, room: memoryview) -> int:
        """Some bytes out of the pipe; 0 when the child has ended and left none."""
        assert self._handle is not None
        while True:
            over = self._ended.is_set()  # asked first: what it wrote before that is in the pipe
            try:
                count = os.readv(self._handle, [room])
            except BlockingIOError:
                select.select([self._handle], [], [], _PATIENCE_S)
                continue
            if count:
                return count
            if over:
                if self._failure is not None:
                    raise self._failure
                return 0
            self._ended.wait(_PATIENCE_S / 10)  # the child has not opened the pipe yet, or is about to end

    def _convert(self) -> None:
        """In a thread of its own."""
        try:
            self._child.run(convert=True, level=Verify.OFF, on_start=self._started, on_header=self._told.set)
        except BaseException as failure:
            self._failure = (self._feeder.failure if self._feeder else None) or failure
        finally:
            if self._feeder is not None:
                self._feeder.end()
            self._ended.set()
            self._told.set()

    def _started(self, process_id: int) -> None:
        self._process_id = process_id
        if self._cancelled:
            process.end(process_id)

    def _stop(self) -> None:
        """End the child, now or as soon as it has begun."""
        self._cancelled = True
        if self._process_id is not None and not self._ended.is_set():
            process.end(self._process_id)

    def _end(self) -> None:
        if self._thread.is_alive():
            self._stop()
            self._thread.join()


class _Data:
    """What is left of a tensor in the pipe."""

    def __init__(self, base: StreamedBase, count: int) -> None:
        self._base = base
        self._left = count

    def readinto(self, room: memoryview, /) -> int:
        if not self._left:
            return 0
        count = self._base.read(room[: self._left])
        self._left -= count
        return count

    def skip(self) -> None:
        scratch = memoryview(bytearray(min(self._left, _SCRATCH_BYTES)))
        while self._left and self.readinto(scratch):
            pass

"""Blocks of rows: read once, quantized once to each type, written to every file."""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ggq.errors import GgufProblem
from ggq.gguf import tensor_types
from ggq.gguf.header import TensorInfo
from ggq.llamacpp.ggml_rows import FLOAT_BYTES, Rows
from ggq.quantization.imatrix_file import Importance
from ggq.quantization.tensor_source import Source, Stream

# Large enough that Python's part of a block does not count, small enough for a cache.
_BLOCK_WEIGHTS = 256 << 10


class Place(NamedTuple):
    """Where a tensor's data begin in an output."""

    path: Path
    offset_bytes: int


@dataclass(frozen=True)
class Work:
    """A tensor of the base; for each type that it is to become, the places where that goes."""

    tensor: TensorInfo
    targets: Mapping[str, Sequence[Place]]

    @property
    def output_bytes(self) -> int:
        kinds = tensor_types.by_name()
        elements = self.tensor.elements
        return sum(kinds[kind].row_bytes(elements) * len(places) for kind, places in self.targets.items())


@dataclass(frozen=True)
class _Block:
    """Some rows of a tensor. ``data``: as they were read, in ``room``; ``importance`` of the tensor's columns
    (float32); ``is_last``: it ends with them."""

    work: Work
    first_row: int
    data: memoryview
    room: memoryview
    importance: memoryview | None
    is_last: bool


@dataclass(frozen=True)
class _Bench:
    """A thread's room for one block: widened to float32, and quantized."""

    values: memoryview
    made: memoryview


class Worker:
    """Does the work of one pass in ``threads`` threads, and its reading in the caller's.

    Its memory: for each thread a block as it was read, one widened to float32 and one quantized, and another
    block that is being read. A block holds as many whole rows as keep these within ``max_memory_bytes``, but
    at most 256 Ki weights, and at least one row. The importance of the tensors under way comes on top.
    """

    def __init__(
        self,
        rows: Rows,
        source: Source,
        importance: Importance | None,
        *,
        threads: int,
        max_memory_bytes: int,
    ) -> None:
        self._rows = rows
        self._source = source
        self._importance = importance
        self._threads = threads
        blocks = 3 * threads + 1
        self._block_weights = min(_BLOCK_WEIGHTS, max_memory_bytes // (blocks * FLOAT_BYTES))
        self._rooms: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        self._benches: queue.SimpleQueue[_Bench] = queue.SimpleQueue()
        self._files: dict[Path, int] = {}
        self._stopped = threading.Event()

    def run(
        self, works: Sequence[Work], finished: Callable[[Work], None], written: Callable[[int], None]
    ) -> None:
        """Do all ``works``. ``finished``: called for each, in order, once its data are in all files;
        ``written``: called with bytes that were written.

        Raises GgufProblem (data that are no numbers, or too few), OSError, and what the source raises.
        """
        self._furnish(works)
        with ExitStack() as stack:
            for path in {
                place.path for work in works for places in work.targets.values() for place in places
            }:
                self._files[path] = os.open(path, os.O_WRONLY)
                stack.callback(os.close, self._files[path])
            pool = stack.enter_context(ThreadPoolExecutor(self._threads))
            under_way: deque[tuple[_Block, Future[int]]] = deque()

            def settle(*, wait: bool) -> None:
                while under_way and (wait or under_way[0][1].done()):
                    self._settle(*under_way.popleft(), finished, written)

            try:
                for work in works:
                    for block in self._read(work):
                        under_way.append((block, pool.submit(self._do, block)))
                        settle(wait=False)
                    settle(wait=self._source.is_remote)
                settle(wait=True)
            except BaseException:
                with suppress(Exception):
                    settle(wait=False)
                self._stopped.set()
                pool.shutdown(cancel_futures=True)
                raise

    def _furnish(self, works: Sequence[Work]) -> None:
        """Make the rooms and benches, as large as these works need them."""
        read = values = made = 0
        for work in works:
            rows = min(self._rows_at_once(work.tensor), work.tensor.elements // work.tensor.shape[0])
            read = max(read, rows * _row_bytes(work.tensor))
            for kind in work.targets:
                if kind != work.tensor.type:
                    values = max(values, FLOAT_BYTES * rows * work.tensor.shape[0])
                    made = max(made, rows * _row_bytes(work.tensor, kind))
        for _ in range(self._threads + 1):
            self._rooms.put(_memory(read))
        for _ in range(self._threads):
            self._benches.put(_Bench(_memory(values), _memory(made)))

    def _read(self, work: Work) -> Iterator[_Block]:
        """The blocks of a tensor, each as soon as there is room for it."""
        tensor = work.tensor
        importance = self._weights(tensor)
        row_bytes, count = _row_bytes(tensor), tensor.elements // tensor.shape[0]
        step = self._rows_at_once(tensor)
        with self._source.open(tensor) as stream:
            for row in range(0, count, step):
                rows = min(step, count - row)
                room = self._rooms.get()
                data = room[: rows * row_bytes]
                _fill(data, stream, tensor)
                yield _Block(work, row, data, room, importance, is_last=row + rows == count)

    @staticmethod
    def _settle(
        block: _Block,
        done: Future[int],
        finished: Callable[[Work], None],
        written: Callable[[int], None],
    ) -> None:
        written(done.result())
        if block.is_last:
            finished(block.work)

    def _do(self, block: _Block) -> int:
        """Quantize a block and write it; returns the bytes written."""
        work, data = block.work, block.data
        tensor = work.tensor
        bench = self._benches.get()
        written = 0
        try:
            if not self._rows.are_sound(tensor.type, data):
                raise _unsound(f"The tensor {tensor.name!r} has invalid data.", block)
            values = None
            for kind, places in work.targets.items():
                if self._stopped.is_set():
                    break
                made = data
                if kind != tensor.type:
                    if values is None:
                        values = self._rows.widened(tensor.type, data, bench.values)
                    made = self._quantized(kind, values, block, bench.made)
                    if not self._rows.are_sound(kind, made):
                        raise _unsound(f"The tensor {tensor.name!r} cannot become {kind}.", block)
                for place in places:
                    self._write(place, made, block.first_row * _row_bytes(tensor, kind))
                written += len(made) * len(places)
        finally:
            self._benches.put(bench)
            self._rooms.put(block.room)
        return written

    def _quantized(self, kind: str, values: memoryview, block: _Block, room: memoryview) -> memoryview:
        """``values`` in ``kind``, each expert's rows with the importance of its own."""
        width, rows_of_expert = (*block.work.tensor.shape, 1)[:2]
        if block.importance is None:
            return self._rows.quantize(kind, values, width, None, room)
        wide_bytes, row_bytes = FLOAT_BYTES * width, _row_bytes(block.work.tensor, kind)
        count = len(values) // wide_bytes
        row = 0
        while row < count:
            expert, within = divmod(block.first_row + row, rows_of_expert)
            end = min(count, row + rows_of_expert - within)
            part = values[row * wide_bytes : end * wide_bytes]
            own = block.importance[expert * wide_bytes : (expert + 1) * wide_bytes]
            self._rows.quantize(kind, part, width, own, room[row * row_bytes :])
            row = end
        return room[: count * row_bytes]

    def _write(self, place: Place, data: memoryview, start: int) -> None:
        offset = place.offset_bytes + start
        while data:
            count = os.pwrite(self._files[place.path], data, offset)
            data, offset = data[count:], offset + count

    def _weights(self, tensor: TensorInfo) -> memoryview | None:
        matrix = self._importance
        if matrix is None or not matrix.fits(tensor.name, tensor.shape):
            return None
        return memoryview(matrix.weights(tensor.name)).cast("B")

    def _rows_at_once(self, tensor: TensorInfo) -> int:
        return max(1, self._block_weights // tensor.shape[0])


def _row_bytes(tensor: TensorInfo, kind: str | None = None) -> int:
    """Of a row of the tensor: as it is, or as it will be in ``kind``."""
    return tensor_types.by_name()[kind or tensor.type].row_bytes(tensor.shape[0])


def _memory(size_bytes: int) -> memoryview:
    return memoryview(bytearray(size_bytes))


def _fill(rest: memoryview, stream: Stream, tensor: TensorInfo) -> None:
    while rest:
        count = stream.readinto(rest)
        if not count:
            raise GgufProblem(
                f"The data of {tensor.name!r} are truncated.",
                f"At least {len(rest):,} bytes are missing.",
                "Run the same command again; if it stays so, download or make the model again.",
            )
        rest = rest[count:]


def _unsound(what: str, block: _Block) -> GgufProblem:
    last = block.first_row + len(block.data) // _row_bytes(block.work.tensor) - 1
    return GgufProblem(
        what,
        f"ggml finds a NaN or an infinity among its rows {block.first_row:,} to {last:,}.",
        "Get the checkpoint again; if it is as its publisher made it, it cannot be quantized.",
    )

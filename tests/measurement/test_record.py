"""The record keeps what is not measured again."""

from __future__ import annotations

from pathlib import Path

import measured
import pytest

from ggq.llamacpp.memory import Breakdown, FilledContext
from ggq.llamacpp.offload import Offload
from ggq.measurement.memory import MemoryCell, MemoryResult
from ggq.measurement.record import Record
from ggq.system.memory_sampler import MemoryPeaks


@pytest.mark.parametrize(("offload", "expected"), [(Offload(), [1024, 512]), (Offload(-1), [1024])])
def test_cells_of_another_day_stay_where_all_else_was_alike(
    tmp_path: Path, offload: Offload, expected: list[int]
) -> None:
    path, model = tmp_path / "record.json", measured.subject("Q8_0")
    for context, placement in ((512, Offload()), (1024, offload)):
        run = FilledContext((), MemoryPeaks(1), None, context - 8, 8, 1.0)
        cell = MemoryCell(context, "f16", "f16", "mmap", Breakdown(()), 1, 0, run, 1, 1)
        result = MemoryResult(measured.MEASURED_AT, model.path.name, model.file_bytes, 1, placement, (cell,))
        record = Record(path)
        record.add(model, measured.ENVIRONMENT, result)
        record.save()
    [entry] = Record(path).entries
    assert entry.measurements.memory is not None
    assert [cell.context_tokens for cell in entry.measurements.memory.cells] == expected

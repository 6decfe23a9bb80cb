"""What a table shows of a record: a row of main figures for each file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ggq.llamacpp.perplexity import Estimate
from ggq.measurement.memory import MemoryResult
from ggq.measurement.record import Entry
from ggq.measurement.speed import SpeedResult


@dataclass(frozen=True)
class Row:
    """An entry's main figures; None: not measured. ``is_base``: others were compared with it. Speeds are at
    the greatest number of layers on GPUs that was measured, without depth; ``ram_bytes``: peak resident of
    the shortest context that was measured, ``vram_bytes``: of all GPUs then."""

    name: str
    file_name: str
    sha256: str
    environment_id: str
    is_base: bool
    file_bytes: int
    bits_per_weight: float
    perplexity: Estimate | None
    mean_kld: Estimate | None
    same_top: Estimate | None
    prompt_tokens_per_s: Estimate | None
    generation_tokens_per_s: Estimate | None
    ram_bytes: int | None
    vram_bytes: int | None


def rows(entries: Sequence[Entry]) -> list[Row]:
    """A row for each entry: bases first, then by bits per weight."""
    bases = {it.ground.base.sha256 for entry in entries if (it := entry.measurements.quality)}
    made = [_row(entry, is_base=entry.model.sha256 in bases) for entry in entries]
    return sorted(made, key=lambda row: (not row.is_base, row.bits_per_weight, row.name))


def _row(entry: Entry, *, is_base: bool) -> Row:
    model, found = entry.model, entry.measurements
    divergence = found.quality.divergence if found.quality else None
    ram_bytes, vram_bytes = _memory(found.memory)
    return Row(
        name=model.name,
        file_name=model.file_name,
        sha256=model.sha256,
        environment_id=entry.environment_id,
        is_base=is_base,
        file_bytes=model.file_bytes,
        bits_per_weight=model.bits_per_weight,
        perplexity=found.quality.perplexity if found.quality else None,
        mean_kld=divergence.mean_kld if divergence else None,
        same_top=divergence.same_top if divergence else None,
        prompt_tokens_per_s=_rate(found.speed, "prompt"),
        generation_tokens_per_s=_rate(found.speed, "generation"),
        ram_bytes=ram_bytes,
        vram_bytes=vram_bytes,
    )


def _rate(speed: SpeedResult | None, test: str) -> Estimate | None:
    figures = [figure for figure in speed.figures if figure.test == test] if speed else []
    if not figures:
        return None
    return min(figures, key=lambda figure: (figure.depth_tokens, -figure.n_gpu_layers)).speed.estimate


def _memory(memory: MemoryResult | None) -> tuple[int | None, int | None]:
    cells = memory.cells if memory else ()
    run = next((cell.measured for cell in cells if cell.measured), None)
    if run is None:
        return None, None
    return run.peaks.resident_bytes, run.vram_bytes

"""``ggq bench memory``: what a model really takes, beside llama.cpp's own account of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from ggq.cli.bench.options import form_options, give, models_argument, record_option, show_rows
from ggq.cli.options import output_options
from ggq.cli.output import Output
from ggq.cli.settings import settings_options
from ggq.llamacpp.memory import BreakdownRow
from ggq.measurement.memory import MemoryCell
from ggq.measurement.settings import BenchSettings, MemorySettings
from ggq.measurement.words import Kind
from ggq.operations.bench import bench
from ggq.session import Session
from ggq.system import files
from ggq.system.memory_sampler import MemoryPeaks

_WORTH_A_WORD_BYTES = 16 << 20


@click.command(short_help="RAM and VRAM of a load and a full context.")
@models_argument
@settings_options(MemorySettings)
@record_option
@form_options
@output_options
def memory(
    models: tuple[Path, ...], settings: MemorySettings, output: Path | None, form: str | None, out: Output
) -> None:
    """Load each GGUF FILE, fill its context, generate some tokens, and measure the memory.

    Every context is measured with every type of cache and every way of loading. Beside the measurement stand
    the buffers that llama.cpp says it made; --json has each of them.

    \b
    ggq bench memory Qwen3-0.6B-Q4_K_M.gguf
    ggq bench memory Qwen3-0.6B-Q4_K_M.gguf -c 512,4096 -ctk f16,q8_0
    ggq bench memory Qwen3-0.6B-Q4_K_M.gguf -ngl all -lm none --json
    """
    settings.cache_types  # noqa: B018 - a wrong pair is told before anything is read
    with out.progress() as listener:
        done = bench(
            models,
            BenchSettings(kinds=(Kind.MEMORY,), memory=settings),
            output=output,
            session=Session(listener=listener),
        )
    if form:
        show_rows(out, done.entries, form)
    for subject, found in () if form else done.memory:
        _show(out, subject.path.name, found.cells)
    out.hint(f"The record, with every buffer: {done.record}")
    models_json = [found for _, found in done.memory]
    give(out, {"models": models_json, "failures": done.failures})
    if done.failures:
        raise SystemExit(1)


def _show(out: Output, name: str, cells: Sequence[MemoryCell]) -> None:
    """The tables of one model, and what a person should know of them."""
    if not cells:
        return
    out.text(name)
    out.table(
        ["context", "cache", "load", "resident", "file", "own", "buffers", "differ"],
        [_row(cell) for cell in cells],
        right=(0, 3, 4, 5, 6, 7),
    )
    process_bytes = max(cell.predicted.process_bytes or 0 for cell in cells)
    out.paragraph(
        "own: memory of the process, which the system cannot take back; file: pages of mapped files, which it"
        " can; buffers: what llama.cpp says it has in own memory. Program, vocabulary and graph come on top:"
        f" about {files.human_bytes(process_bytes)} here."
    )
    logits_bytes = max(cell.batch_logits_bytes for cell in cells)
    if logits_bytes > _WORTH_A_WORD_BYTES:
        out.paragraph(
            f"Up to {files.human_bytes(logits_bytes)} of the buffers is room for the logits of a whole batch;"
            " this run, as any chat, needs those of one token at a time, and left it untouched."
        )
    _show_devices(out, cells)
    if any(cell.measured is None for cell in cells):
        out.paragraph("Rows without a measurement were not run (--quick): their buffers are estimated.")


def _row(cell: MemoryCell) -> list[str]:
    peaks = cell.measured.peaks if cell.measured else MemoryPeaks(0)
    buffers = cell.predicted_bytes if cell.explained_bytes is None else cell.explained_bytes
    return [
        *_names(cell),
        _size(peaks.resident_bytes or None),
        _size(peaks.file_bytes),
        _size(peaks.anonymous_bytes),
        files.human_bytes(buffers),
        _size(cell.residual_bytes),
    ]


def _names(cell: MemoryCell) -> list[str]:
    cache = cell.type_k if cell.type_k == cell.type_v else f"{cell.type_k}/{cell.type_v}"
    return [str(cell.context_tokens), cache, cell.load_mode]


def _show_devices(out: Output, cells: Sequence[MemoryCell]) -> None:
    devices = [(cell, row) for cell in cells for row in cell.predicted.devices]
    if not devices:
        return
    out.text()
    rows = [
        [*_names(cell), row.name, *map(files.human_bytes, _parts(row)), files.human_bytes(row.sum_bytes)]
        for cell, row in devices
    ]
    out.table(
        ["context", "cache", "load", "device", "weights", "KV", "computing", "in all"],
        rows,
        right=(0, 4, 5, 6, 7),
    )
    for cell in cells:
        for gpu in (cell.measured.gpus if cell.measured else None) or ():
            out.text(
                f"{' '.join(_names(cell))}: {files.human_bytes(gpu.own_bytes)} of {gpu.name} {gpu.index}"
            )
    if any(row.is_elsewhere for _, row in devices):
        out.paragraph("The memory of an RPC server's device is estimated, not measured: it is elsewhere.")


def _parts(row: BreakdownRow) -> tuple[int, int, int]:
    return row.model_bytes, row.context_bytes, row.compute_bytes


def _size(count: int | None) -> str:
    return "-" if count is None else files.human_bytes(count)

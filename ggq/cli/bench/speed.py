"""``ggq bench speed``: tokens per second, by llama-bench and as a Python user gets them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from ggq.cli.bench.options import (
    draw,
    form_options,
    give,
    models_argument,
    plot_option,
    record_option,
    show_rows,
)
from ggq.cli.options import output_options
from ggq.cli.output import Output
from ggq.cli.settings import settings_options
from ggq.measurement.settings import BenchSettings, SpeedSettings
from ggq.measurement.speed import SpeedFigure, SpeedResult
from ggq.measurement.throughput import Rate, human_rate
from ggq.measurement.words import Kind
from ggq.operations.bench import bench
from ggq.session import Session


@click.command(short_help="Tokens per second of a prompt and of generation.")
@models_argument
@settings_options(SpeedSettings)
@plot_option
@record_option
@form_options
@output_options
def speed(
    models: tuple[Path, ...],
    settings: SpeedSettings,
    plot: Path | None,
    output: Path | None,
    form: str | None,
    out: Output,
) -> None:
    """Measure each GGUF FILE with llama-bench, in tokens per second, until the error is small.

    Figures are medians. Beside them stands what llama-cpp-python gets of the same file.

    \b
    ggq bench speed Qwen3-0.6B-Q4_K_M.gguf
    ggq bench speed *.gguf -t auto -d 0,4096
    ggq bench speed Qwen3-0.6B-Q4_K_M.gguf -ngl sweep
    ggq bench speed Qwen3-0.6B-Q4_K_M.gguf -ngl 0,10,all --rpc 192.168.0.7:50052
    """
    with out.progress() as listener:
        done = bench(
            models,
            BenchSettings(kinds=(Kind.SPEED,), speed=settings),
            output=output,
            session=Session(listener=listener),
        )
    results = [found for _, found in done.speed]
    if form:
        show_rows(out, done.entries, form)
    else:
        show(out, results)
    out.hint(f"The record, with every sample: {done.record}")
    give(out, {"models": results, "failures": done.failures})
    if not draw(out, done.entries, plot) or done.failures:
        raise SystemExit(1)


def show(out: Output, results: Sequence[SpeedResult]) -> None:
    """One table of all figures, and what a person should know of them."""
    figures = [(name, figure) for name, result in _named(results) for figure in result.figures]
    if not figures:
        return
    columns = {
        "model": [name for name, _ in figures],
        "test": [str(figure.point).split(" @")[0] for _, figure in figures],
        "depth": [str(figure.depth_tokens) for _, figure in figures],
        "ngl": [str(figure.n_gpu_layers) for _, figure in figures],
        "t/s": [human_rate(figure.speed.median_tokens_per_s) for _, figure in figures],
        "±": [_error(figure.speed) for _, figure in figures],
        "Python t/s": [_python(figure) for _, figure in figures],
    }
    for name, dull in (("depth", {"0"}), ("ngl", {"0"}), ("Python t/s", {"-"})):
        if set(columns[name]) == dull:
            del columns[name]
    names = list(columns)
    rows = list(zip(*columns.values(), strict=True))
    out.table(names, rows, right=range(2, len(names)))
    for device in dict.fromkeys(device for _, figure in figures for device in figure.devices):
        out.text(f"Layers on a GPU (ngl) are on {device}.")
    for name, result in _named(results):
        for text in _sentences(result):
            out.paragraph(f"{name}: {text}" if len(results) > 1 else text)
        for failure in result.failures:
            out.warning(f"{name}, ngl {failure.n_gpu_layers}: {failure.error}")


def _sentences(result: SpeedResult) -> list[str]:
    gaps = [
        (
            str(figure.point) + (f", ngl {figure.n_gpu_layers}" if figure.n_gpu_layers else ""),
            it,
        )
        for figure in result.figures
        if (it := figure.binding) is not None
    ]
    explained = [f"{where}: {it.explanation}" for where, it in gaps if it.explanation]
    return [_threads(result), *explained, *result.remarks]


def _threads(result: SpeedResult) -> str:
    chosen = result.threads
    words = f"Threads: {chosen.prompt} for prompts, {chosen.generation} for generation"
    tried = ", ".join(str(trial.threads) for trial in chosen.trials)
    return f"{words}; {tried} were tried." if tried else f"{words}."


def _named(results: Sequence[SpeedResult]) -> list[tuple[str, SpeedResult]]:
    """Each result by its preset, or by its file where two have the same."""
    presets = [result.preset for result in results]
    return [
        (result.preset if result.preset and presets.count(result.preset) == 1 else result.file, result)
        for result in results
    ]


def _error(speed: Rate) -> str:
    error = speed.relative_standard_error
    return "-" if error is None else f"{error:.1%}"


def _python(figure: SpeedFigure) -> str:
    if figure.binding is None:
        return "-"
    return f"{human_rate(figure.binding.speed.rate.median_tokens_per_s)} (×{figure.binding.ratio:.2f})"

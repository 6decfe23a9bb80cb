"""``ggq bench speed``: tokens per second, by llama-bench and as a Python user gets them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import click

from ggq.cli.bench.options import draw, plot_option, record_option, rpc_option
from ggq.cli.options import Listed, output_options
from ggq.cli.output import Output
from ggq.llamacpp import bench as llama_bench
from ggq.llamacpp.offload import ALL_LAYERS
from ggq.measurement import plot as plots
from ggq.measurement.settings import BenchSettings
from ggq.measurement.speed import SpeedFigure, SpeedResult, SpeedSettings
from ggq.measurement.throughput import Precision, Rate, human_rate
from ggq.operations.bench import bench

_TOKENS = Listed(click.IntRange(min=0))


class _Threads(click.ParamType[Any]):
    name = "n|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == "auto" else click.IntRange(min=1).convert(value, param, ctx)


class _Layers(click.ParamType[Any]):
    """``sweep``, or numbers of layers, where ``all`` is one."""

    name = "n,...|all|sweep"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "sweep":
            return value
        number = click.IntRange(min=0)
        return tuple(
            ALL_LAYERS if part == "all" else number.convert(part, param, ctx) for part in value.split(",")
        )


def _joined(
    _ctx: click.Context, _param: click.Parameter, values: tuple[tuple[Any, ...], ...]
) -> tuple[Any, ...] | None:
    """The values of an option that was repeated, each of them a list; None when it was not given."""
    return tuple(value for part in values for value in part) if values else None


@click.command(short_help="Tokens per second of a prompt and of generation.")
@click.argument("models", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-p", "--n-prompt", "prompt_tokens", type=_TOKENS, multiple=True, callback=_joined,
    help="Lengths of prompts, as 128,512; 0: none. Default: 512, or what the context holds.",
)  # fmt: skip
@click.option(
    "-n", "--n-gen", "generated_tokens", type=_TOKENS, multiple=True, callback=_joined,
    help="Tokens to generate; 0: none. Default: 128, or what the context holds.",
)  # fmt: skip
@click.option(
    "-d", "--n-depth", "depths", type=_TOKENS, multiple=True, callback=_joined,
    help="Tokens in the context before that, as 0,4096. Default: 0.",
)  # fmt: skip
@click.option(
    "-t", "--threads", type=_Threads(),
    help="Threads; auto: the best count for each. Default: the cores one may use.",
)  # fmt: skip
@click.option(
    "-ctk", "--cache-type-k", "type_k", type=click.Choice(llama_bench.CACHE_TYPES), default="f16",
    show_default=True, help="Type of the cache's keys.",
)  # fmt: skip
@click.option(
    "-ctv", "--cache-type-v", "type_v", type=click.Choice(llama_bench.CACHE_TYPES), default="f16",
    show_default=True, help="Type of its values.",
)  # fmt: skip
@click.option(
    "-fa", "--flash-attn", "flash_attention", type=click.Choice(llama_bench.FLASH_ATTENTION), default="auto",
    show_default=True, help="Flash attention.",
)  # fmt: skip
@click.option(
    "-lm", "--load-mode", "load_mode", type=click.Choice(llama_bench.LOAD_MODES), default="auto",
    show_default=True, help="Way of loading.",
)  # fmt: skip
@click.option(
    "-ngl", "--n-gpu-layers", "n_gpu_layers", type=_Layers(),
    help="Layers on GPUs, the output layer counted; sweep: none, quarters, all. Default: all, if any GPU.",
)  # fmt: skip
@click.option(
    "--n-cpu-moe", type=click.IntRange(min=0), default=0, help="Layers whose experts stay on the CPU."
)
@click.option(
    "-ts", "--tensor-split", type=Listed(click.FloatRange(min=0)), default=(),
    help="Share of each GPU, as 3,1.",
)  # fmt: skip
@rpc_option
@click.option(
    "--reps", type=click.IntRange(min=1), default=Precision().most, show_default=True,
    help="Repetitions at most; fewer when the error is below 2 % before.",
)  # fmt: skip
@click.option("--quick", is_flag=True, help="A shorter prompt and fewer tokens by default: 128 and 32.")
@click.option("--no-binding", is_flag=True, help="Leave llama-cpp-python out.")
@plot_option
@record_option
@output_options
def speed(
    models: tuple[Path, ...],
    prompt_tokens: tuple[int, ...] | None,
    generated_tokens: tuple[int, ...] | None,
    depths: tuple[int, ...] | None,
    threads: int | Literal["auto"] | None,
    type_k: str,
    type_v: str,
    flash_attention: str,
    load_mode: str,
    n_gpu_layers: tuple[int, ...] | Literal["sweep"] | None,
    n_cpu_moe: int,
    tensor_split: tuple[float, ...],
    rpc: tuple[str, ...],
    reps: int,
    quick: bool,
    no_binding: bool,
    plot: Path | None,
    output: Path | None,
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
    if plot is not None:
        plots.require(plot)
    settings = SpeedSettings(
        prompt_tokens=prompt_tokens,
        generated_tokens=generated_tokens,
        depths=depths or (0,),
        threads=threads,
        n_gpu_layers=n_gpu_layers,
        n_cpu_moe=n_cpu_moe,
        tensor_split=tensor_split,
        rpc=rpc,
        type_k=type_k,
        type_v=type_v,
        flash_attention=flash_attention,
        load_mode=load_mode,
        precision=Precision(most=reps),
        binding=not no_binding,
        quick=quick,
    )
    with out.progress() as listener:
        done = bench(
            models, BenchSettings(kinds=("speed",), speed=settings), output=output, listener=listener
        )
    results = [result for _, result in done.speed]
    show(out, results)
    out.hint(f"The record, with every sample: {done.record}")
    out.result({"models": results, "failures": done.failures})
    if (plot is not None and not draw(out, done.entries, plot)) or done.failures:
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
            words = " ".join(part for part in (failure.what, failure.why, failure.next_step) if part)
            out.warning(f"{name}, ngl {failure.n_gpu_layers}: {words}")


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

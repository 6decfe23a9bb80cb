"""``ggq bench quality``: perplexity, and divergence from the base."""

from __future__ import annotations

from pathlib import Path

import click

from ggq import units
from ggq.cli.bench.options import layers_option, record_option, rpc_option, text_options
from ggq.cli.options import output_options, threads_option
from ggq.cli.output import Output, human_seconds
from ggq.errors import UsageProblem
from ggq.llamacpp import toolchain
from ggq.llamacpp.perplexity import Estimate
from ggq.measurement import tables
from ggq.measurement.quality import QualityResult, QualitySettings
from ggq.measurement.ranking import Comparison
from ggq.measurement.settings import BenchSettings, TextChoice, offload_for
from ggq.operations.bench import bench

_MARKS = {"ordered": "<", "indifferent": "≈", "unsettled": "?"}
_MEANING = {"<": "settled at 95 %", "≈": "too close to matter", "?": "not settled by so many chunks"}


@click.command(short_help="Perplexity, and divergence from the base.")
@click.argument("base", type=click.Path(path_type=Path))
@click.argument("models", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@text_options
@click.option("-c", "--ctx-size", "context", type=click.IntRange(min=8), default=512, show_default=True,
              help="Tokens in a chunk; the second half of each is scored.")  # fmt: skip
@click.option("--until", type=click.Choice(["ranked"]), default="ranked", show_default=True,
              help="Measure until the order of the files is settled.")  # fmt: skip
@click.option("--chunks", type=click.IntRange(min=1), help="Measure the text's first chunks, so many.")
@click.option("--full", is_flag=True, help="Measure the whole text.")
@click.option("--max-chunks", type=click.IntRange(min=2), default=QualitySettings.max_chunks,
              show_default=True, help="Chunks at most when nothing settles the order.")  # fmt: skip
@click.option("--indifference", type=click.FloatRange(min=0), default=QualitySettings.indifference,
              show_default=True, help="Differences of mean KLD that need no order, in nats.")  # fmt: skip
@click.option("--max-base-bytes", default="4G", show_default=True, metavar="SIZE",
              help="Disk for the base's logits at a time, as 500M.")  # fmt: skip
@click.option("--reference", type=click.Path(path_type=Path), metavar="CHECKPOINT",
              help="Hold the base against its checkpoint as well, computed by transformers.")  # fmt: skip
@layers_option
@rpc_option
@threads_option
@record_option
@output_options
def quality(
    base: Path,
    models: tuple[Path, ...],
    text: TextChoice,
    context: int,
    until: str,
    chunks: int | None,
    full: bool,
    max_chunks: int,
    indifference: float,
    max_base_bytes: str,
    reference: Path | None,
    n_gpu_layers: int | None,
    rpc: tuple[str, ...],
    threads: int | None,
    output: Path | None,
    out: Output,
) -> None:
    """Measure how much worse each FILE talks than BASE, the 16-bit GGUF that it was made from.

    All are measured on the same random pieces of a text, until the order of the files by their divergence
    is settled at 95 %.

    \b
    ggq bench quality Qwen3-0.6B-BF16.gguf Qwen3-0.6B-Q4_K_M.gguf Qwen3-0.6B-Q5_K_M.gguf
    ggq bench quality Qwen3-0.6B-BF16.gguf Qwen3-0.6B-Q*.gguf --text book.txt
    ggq bench quality Qwen3-0.6B-BF16.gguf Qwen3-0.6B-Q4_K_M.gguf --corpus wikitext-2 --full
    """
    if full and chunks:
        raise UsageProblem("--full and --chunks exclude each other.", "", "Leave one of them out.")
    tools = toolchain.find()
    settings = QualitySettings(
        until="full" if full else "chunks" if chunks else "ranked",
        context=context,
        chunks=chunks,
        max_chunks=max_chunks,
        indifference=indifference,
        max_base_bytes=units.parse_bytes(max_base_bytes),
        threads=threads,
        offload=offload_for(tools, n_gpu_layers, rpc),
        checkpoint=reference,
    )
    with out.progress() as listener:
        done = bench(
            [base, *models],
            BenchSettings(kinds=("quality",), base=base, text=text, quality=settings),
            output=output,
            toolchain=tools,
            listener=listener,
        )
    assert done.quality is not None
    show(out, done.quality)
    out.hint(f"The record, with every round: {done.record}")
    out.result(done.quality)
    if done.failures:
        raise SystemExit(1)


def show(out: Output, found: QualityResult) -> None:
    """The table of quality, and what is settled about the order."""
    out.paragraph(
        f"{found.base}: perplexity {tables.perplexity(found.base_perplexity)} on {found.text.name},"
        f" {found.chunks} chunks of {found.context} tokens, in {human_seconds(found.seconds)}"
    )
    out.table(
        ["preset", "PPL", "mean KLD", "median", "99 %", "max", "top-1 %", "Δp RMS %"],
        [
            [
                model.name,
                tables.perplexity(model.perplexity),
                tables.relative(model.mean_kld),
                f"{model.median_kld.value:.3g}",
                f"{model.p99_kld.value:.3g}",
                f"{model.max_kld:.3g}",
                tables.plus_minus(_percent(model.same_top), 1),
                tables.plus_minus(_percent(model.rms_dp), 2),
            ]
            for model in found.models
        ],
        right=range(1, 8),
        compact=True,
    )
    if len(found.models) > 1:
        out.paragraph(f"Order by mean KLD, best first: {order(found.ranking)}")
        marks = {_MARKS[pair.verdict] for pair in found.ranking}
        out.paragraph("; ".join(f"{mark} {_MEANING[mark]}" for mark in _MEANING if mark in marks) + ".")
    if found.stopped in ("cap", "end of text"):
        why = "--max-chunks was reached" if found.stopped == "cap" else "the text ended"
        pairs = [f"{pair.better} and {pair.worse}" for pair in found.ranking if pair.verdict == "unsettled"]
        if pairs:
            out.warning(f"The order of {', '.join(pairs)} was not settled before {why}.")
    known, difference = found.reference, found.reference_difference
    if known is not None and difference is not None:
        own = Estimate(known.value, known.standard_error)
        out.paragraph(
            f"transformers {known.transformers_version} makes it {tables.perplexity(own)} of the checkpoint,"
            f" on the same tokens: the base GGUF differs by {100 * difference:+.3f} %."
        )


def order(ranking: tuple[Comparison, ...]) -> str:
    return " ".join(
        [ranking[0].better, *(part for pair in ranking for part in (_MARKS[pair.verdict], pair.worse))]
    )


def _percent(estimate: Estimate) -> Estimate:
    error = estimate.standard_error
    return Estimate(100 * estimate.value, 100 * error if error is not None else None)

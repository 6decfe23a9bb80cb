"""``ggq bench quality``: perplexity, and divergence from the 16-bit GGUF."""

from __future__ import annotations

import math
from pathlib import Path

import click

from ggq.cli.bench.options import (
    form_options,
    give,
    models_argument,
    offline_option,
    record_option,
    show_rows,
)
from ggq.cli.options import output_options
from ggq.cli.output import Output, human_seconds
from ggq.cli.settings import settings_options
from ggq.llamacpp.perplexity import Estimate
from ggq.measurement import tables
from ggq.measurement.quality import QualityResult
from ggq.measurement.ranking import Comparison, Verdict
from ggq.measurement.settings import BenchSettings, QualitySettings, TextChoice
from ggq.measurement.words import Kind, Stopped
from ggq.operations.bench import bench
from ggq.session import Session

_MARKS = {Verdict.ORDERED: "<", Verdict.INDIFFERENT: "≈", Verdict.UNSETTLED: "?"}
_MEANING = {"<": "settled at 95 %", "≈": "too close to matter", "?": "not settled by so many chunks"}


@click.command(short_help="Perplexity, and divergence from the 16-bit GGUF.")
@click.argument("base", type=click.Path(path_type=Path))
@models_argument
@settings_options(TextChoice, "text")
@offline_option
@settings_options(QualitySettings)
@click.option(
    "--until", expose_value=False, hidden=True, type=click.Choice(["ranked"]), help="What is done anyway."
)
@record_option
@form_options
@output_options
def quality(
    base: Path,
    models: tuple[Path, ...],
    text: TextChoice,
    settings: QualitySettings,
    offline: bool,
    output: Path | None,
    form: str | None,
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
    with out.progress() as listener:
        done = bench(
            [base, *models],
            BenchSettings(kinds=(Kind.QUALITY,), base=base, text=text, quality=settings),
            output=output,
            session=Session(offline=offline, listener=listener),
        )
    assert done.quality is not None
    if form:
        show_rows(out, done.entries, form)
    else:
        show(out, done.quality)
    out.hint(f"The record, with every round: {done.record}")
    give(out, done.quality)
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
                tables.perplexity(it.perplexity),
                tables.relative(it.mean_kld),
                f"{it.median_kld.value:.3g}",
                f"{it.p99_kld.value:.3g}",
                f"{it.max_kld:.3g}",
                tables.plus_minus(_percent(it.same_top), 1),
                tables.plus_minus(_percent(it.rms_dp), 2),
            ]
            for model in found.models
            for it in (model.divergence,)
        ],
        right=range(1, 8),
        compact=True,
    )
    if len(found.models) > 1:
        out.paragraph(f"Order by mean KLD, best first: {order(found.ranking)}")
        marks = {_MARKS[pair.verdict] for pair in found.ranking}
        out.paragraph("; ".join(f"{mark} {_MEANING[mark]}" for mark in _MEANING if mark in marks) + ".")
    for pair in found.ranking:
        if pair.verdict is Verdict.UNSETTLED:
            out.warning(_unsettled(pair, found))
    known, difference = found.reference, found.reference_difference
    if known is not None and difference is not None:
        own = Estimate(known.value, known.standard_error)
        out.paragraph(
            f"transformers {known.transformers_version} makes it {tables.perplexity(own)} of the checkpoint,"
            f" on the same tokens: the 16-bit GGUF differs by {100 * difference:+.3f} %."
        )


_ENDS = {
    Stopped.CAP: "--max-chunks was reached",
    Stopped.END_OF_TEXT: "the text ended",
    Stopped.AS_ASKED: "no more was asked for",
}


def _unsettled(pair: Comparison, found: QualityResult) -> str:
    """Why the order of two neighbours is not known."""
    words = f"The order of {pair.better} and {pair.worse} is not settled: "
    if math.isfinite(pair.interval.high):
        words += (
            f"their mean KLDs differ by {pair.difference:.2g} nats, at 95 % by {pair.interval.low:.2g} to"
            f" {pair.interval.high:.2g}"
        )
    else:
        words += f"{len(found.rounds)} rounds are too few to tell"
    end = _ENDS.get(found.stopped)
    return words + (f"; {end}." if end else ".")


def order(ranking: tuple[Comparison, ...]) -> str:
    return " ".join(
        [ranking[0].better, *(part for pair in ranking for part in (_MARKS[pair.verdict], pair.worse))]
    )


def _percent(estimate: Estimate) -> Estimate:
    error = estimate.standard_error
    return Estimate(100 * estimate.value, 100 * error if error is not None else None)

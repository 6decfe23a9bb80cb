"""``ggq bench FILE|DIR|MODEL``: quality, speed and memory in one table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from ggq.cli.bench.options import draw, layers_option, plot_option, record_option, rpc_option, text_options
from ggq.cli.bench.quality import order
from ggq.cli.options import output_options, preset_options, threads_option
from ggq.cli.output import Output, human_seconds
from ggq.llamacpp import toolchain
from ggq.measurement import plot as plots
from ggq.measurement import record, tables
from ggq.measurement.settings import Effort, TextChoice, settings_for
from ggq.measurement.speed import NOISY
from ggq.operations.bench import BenchResult, bench
from ggq.operations.request import DEFAULT_PRESETS


@click.command("all", short_help="Everything of files, a folder or a model.")
@click.argument("targets", metavar="FILE|DIR|MODEL...", nargs=-1, required=True)
@click.option("--quick", "effort", flag_value="quick", help="Minutes: fewer chunks, shorter runs.")
@click.option("--thorough", "effort", flag_value="thorough",
              help="Hours: the whole text, depths, contexts and types of cache.")  # fmt: skip
@text_options
@preset_options
@layers_option
@rpc_option
@threads_option
@record_option
@plot_option
@click.option("--markdown", "form", flag_value="markdown", help="Print the table in Markdown.")
@click.option("--csv", "form", flag_value="csv", help="Print the table as CSV, in full precision.")
@output_options
def everything(
    targets: tuple[str, ...],
    effort: Effort | None,
    text: TextChoice,
    preset_names: tuple[str, ...],
    presets_file: Path | None,
    n_gpu_layers: int | None,
    rpc: tuple[str, ...],
    threads: int | None,
    output: Path | None,
    plot: Path | None,
    form: str | None,
    out: Output,
) -> None:
    """Measure quality, speed and memory of GGUF files, those of a folder, or a model that is made first.

    Quality is measured where the 16-bit base is among the files. What was measured stays in the record, also
    when something fails; a broken run goes on where it stopped.

    \b
    ggq bench quants/
    ggq bench quants/ --quick --plot quants.svg
    ggq bench Qwen/Qwen3-0.6B --preset k-quants --markdown
    """
    if plot is not None:
        plots.require(plot)
    tools = toolchain.find()
    settings = settings_for(effort or "standard", tools, n_gpu_layers=n_gpu_layers, rpc=rpc, threads=threads)
    with out.progress() as listener:
        done = bench(
            targets,
            replace(settings, text=text),
            preset_names=preset_names or DEFAULT_PRESETS,
            presets_file=presets_file,
            output=output,
            toolchain=tools,
            listener=listener,
        )
    rows = record.rows(done.entries)
    if form == "markdown":
        out.text(tables.markdown(rows))
    elif form == "csv":
        out.text(tables.csv_text(rows))
    else:
        out.table(*tables.table(rows), compact=True)
    _show_words(out, done)
    out.info(f"Measured in {human_seconds(done.seconds)}; the record, with every sample: {done.record}")
    out.result(done)
    if (plot is not None and not draw(out, done.entries, plot)) or done.failures:
        raise SystemExit(1)


def _show_words(out: Output, done: BenchResult) -> None:
    """What a person should know of the figures: the order of the presets, and how far to trust the speeds."""
    if done.quality is not None and len(done.quality.models) > 1:
        out.paragraph(f"Order by mean KLD, best first: {order(done.quality.ranking)}")
    noise = max((result.noise or 0 for _, result in done.speed), default=0)
    if noise > NOISY:
        out.warning(
            f"This machine is noisy: repetitions of one speed scatter by up to {100 * noise:.0f} %."
            " Close other programs, and measure again."
        )
    figures = [figure for _, result in done.speed for figure in result.figures]
    loose = sum(not figure.settled for figure in figures)
    if loose:
        out.info(f"The error of {loose} of {len(figures)} speeds stayed above its target; see --thorough.")

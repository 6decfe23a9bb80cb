"""``ggq bench FILE|DIR|MODEL``: quality, speed and memory in one table."""

from __future__ import annotations

from pathlib import Path

import click

from ggq.cli.bench.options import (
    draw,
    form_options,
    give,
    plot_option,
    record_option,
    show_rows,
)
from ggq.cli.bench.quality import order
from ggq.cli.options import preset_option, session_options
from ggq.cli.output import Output, human_seconds
from ggq.cli.settings import settings_options
from ggq.measurement.efforts import EverythingSettings
from ggq.measurement.speed import NOISY
from ggq.operations.bench import BenchResult, bench
from ggq.operations.request import DEFAULT_PRESETS
from ggq.session import Session


@click.command("all", short_help="Everything of files, a folder or a model.")
@click.argument("targets", metavar="FILE|DIR|MODEL...", nargs=-1, required=True)
@settings_options(EverythingSettings)
@preset_option
@record_option
@plot_option
@form_options
@session_options(hub=True, presets=True)
def everything(
    targets: tuple[str, ...],
    settings: EverythingSettings,
    presets: tuple[str, ...],
    output: Path | None,
    plot: Path | None,
    form: str | None,
    session: Session,
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
    with out.progress():
        done = bench(
            targets,
            settings.settings(session.toolchain),
            preset_names=presets or DEFAULT_PRESETS,
            output=output,
            session=session,
        )
    show_rows(out, done.entries, form)
    _show_words(out, done, form)
    out.info(f"Measured in {human_seconds(done.seconds)}; the record, with every sample: {done.record}")
    give(out, done)
    if not draw(out, done.entries, plot) or done.failures:
        raise SystemExit(1)


def _show_words(out: Output, done: BenchResult, form: str | None) -> None:
    """What a person should know of the figures: the order of the presets, and how far to trust the speeds."""
    if form is None and done.quality is not None and len(done.quality.models) > 1:
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

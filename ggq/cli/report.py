"""``ggq report``: one page that shows what was made and measured."""

from __future__ import annotations

from pathlib import Path

import click

from ggq.cli.options import output_options
from ggq.cli.output import Output
from ggq.cli.settings import settings_options
from ggq.operations import report as operation
from ggq.operations.report import ReportSettings
from ggq.system import files


@click.command()
@click.argument(
    "folders", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True), metavar="DIR..."
)
@settings_options(ReportSettings)
@output_options
def report(folders: tuple[Path, ...], settings: ReportSettings, out: Output) -> None:
    """Show what was made and measured in each DIR on one page.

    The page is complete in itself: it can be opened, sent and printed without a network. Several folders, or
    records of several machines, stand side by side.

    \b
    ggq report my-model
    ggq report my-model other-model -o comparison.html
    ggq report laptop/ggq-bench.json server/ggq-bench.json
    """
    made = operation.report(folders, settings)
    for choice in made.choices:
        out.text(f"{choice.model}: {choice.chosen.preset}")
        for reason in choice.reasons:
            out.paragraph(f"- {reason}", indent=2)
    out.text(f"{made.report}: {made.chart_count} charts, {files.human_bytes(made.page_bytes)}")
    out.hint("Open it in a browser.")
    out.result(
        {
            "schema_version": 1,
            "report": made.report,
            "page_bytes": made.page_bytes,
            "models": made.models,
            "machine_count": made.machine_count,
            "chart_count": made.chart_count,
            "choices": [
                {"model": it.model, "environment_id": it.machine, "preset": it.chosen.preset,
                 "reasons": it.reasons}
                for it in made.choices
            ],
        }
    )  # fmt: skip

"""``ggq bench show``: the tables and plots of a record, without measuring."""

from __future__ import annotations

from pathlib import Path

import click

from ggq.cli.bench.options import draw, form_options, give, plot_option, show_rows
from ggq.cli.options import output_options
from ggq.cli.output import Output
from ggq.errors import UsageProblem
from ggq.measurement.compare import latest_machine, named_machine
from ggq.measurement.record import load
from ggq.measurement.tables import printable


@click.command("show", short_help="The tables and plots of a record.")
@click.argument("record", metavar="RECORD", type=click.Path(path_type=Path))
@click.option("--machine", "wanted", metavar="ID", help="Which machine's entries. Default: the latest.")
@plot_option
@form_options
@output_options
def show(record: Path, wanted: str | None, plot: Path | None, form: str | None, out: Output) -> None:
    """Show what RECORD holds (a file, or a folder with a ggq-bench.json). Nothing is measured.

    \b
    ggq bench show quants/
    ggq bench show quants/ --plot quants.svg
    ggq bench show quants/ggq-bench.json --csv
    """
    entries = load(record)
    ids = list(dict.fromkeys(entry.environment_id for entry in entries))
    machine = named_machine(wanted, ids) if wanted else latest_machine(entries, ids)
    shown = [entry for entry in entries if entry.environment_id == machine]
    if not any(entry.measurements.kinds for entry in shown):
        raise UsageProblem(f"{record} holds no measurement.", "", "Measure first with `ggq bench`.")
    show_rows(out, shown, form)
    out.info(
        printable(
            f"Measured on {shown[0].environment}, last at {max(it.measurements.latest for it in shown)}."
        )
    )
    if len(ids) > 1 and not wanted:
        out.info(f"The record holds {len(ids)} machines; this is {machine}. Choose by --machine ID.")
    give(out, {"record": record, "entries": shown})
    if not draw(out, shown, plot):
        raise SystemExit(1)

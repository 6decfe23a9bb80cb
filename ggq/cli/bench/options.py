"""What the measuring commands share: options that are no settings of a measurement, and their output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ggq.cli.options import Listed
from ggq.cli.output import Output
from ggq.errors import GgqError
from ggq.llamacpp.offload import ALL_LAYERS
from ggq.measurement import plot, summary, tables
from ggq.measurement.record import Entry
from ggq.system import codec


class Layers(click.ParamType[int]):
    """A number of layers, or ``all``."""

    name = "n|all"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if value in ("all", ALL_LAYERS):
            return ALL_LAYERS
        return click.IntRange(min=0).convert(value, param, ctx)


rpc_option = click.option(
    "--rpc", type=Listed(click.STRING), default=(), help="Servers whose devices count as GPUs, as host:port.",
)  # fmt: skip


def _drawable(_ctx: click.Context, _param: click.Parameter, target: Path | None) -> Path | None:
    """Refuse a plot that cannot be made before what it shows is measured."""
    if target is not None:
        plot.require(target)
    return target


plot_option = click.option(
    "--plot", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", callback=_drawable,
    help="Draw what the record has: size against KLD, speed against layers; .png, .svg or .pdf.",
)  # fmt: skip
record_option = click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="The record. Default: ggq-bench.json beside the first file.",
)  # fmt: skip
offline_option = click.option("--offline", is_flag=True, help="Use only what is in the caches.")
models_argument = click.argument(
    "models", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path)
)


def form_options(function: Any) -> Any:
    """``--markdown --csv``; the command gets ``form: str | None``."""
    function = click.option(
        "--csv", "form", flag_value="csv", help="Print the table as CSV, in full precision."
    )(function)
    return click.option("--markdown", "form", flag_value="markdown", help="Print the table in Markdown.")(
        function
    )


def show_rows(out: Output, entries: Sequence[Entry], form: str | None) -> None:
    """The table of main figures, in one of its forms."""
    rows = summary.rows(entries)
    if form == "markdown":
        out.text(tables.markdown(rows))
    elif form == "csv":
        out.text(tables.csv_text(rows))
    else:
        out.table(*tables.table(rows), compact=True)


def give(out: Output, value: Any) -> None:
    """What a program gets, as records have it."""
    out.result({"schema_version": 1, **codec.encode(value)})


def draw(out: Output, entries: Sequence[Entry], target: Path | None) -> bool:
    """Draw what was measured, where that was asked for; False, with a warning, where there is nothing."""
    if target is None:
        return True
    try:
        plot.plot(entries, target)
    except GgqError as error:
        out.warning(f"Not drawn: {error}")
        return False
    out.info(f"Drawn: {target}")
    return True

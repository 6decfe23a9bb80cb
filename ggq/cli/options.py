"""Options that several commands share, each declared once."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from ggq.cli.errors import set_current_output
from ggq.cli.output import Output

F = TypeVar("F", bound=Callable[..., Any])


def output_options(function: F) -> F:
    """``--json -q -v``; the command gets one ``out: Output`` instead."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON value on stdout, for programs.")
    @click.option("-q", "--quiet", is_flag=True, help="No progress and no remarks.")
    @click.option("-v", "--verbose", count=True, help="Show what the tools print.")
    @functools.wraps(function)
    def wrapped(*args: Any, as_json: bool, quiet: bool, verbose: int, **kwargs: Any) -> Any:
        out = set_current_output(Output(json=as_json, quiet=quiet, verbose=verbose))
        return function(*args, out=out, **kwargs)

    return wrapped  # type: ignore[return-value]


def hub_options(function: F) -> F:
    """``--revision --offline``."""
    function = click.option("--revision", help="A branch, tag or commit of the Hub repository.")(function)
    return click.option("--offline", is_flag=True, help="Use only what is in the Hub cache.")(function)


dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would be done; write nothing.")
force_option = click.option("--force", is_flag=True, help="Overwrite outputs that exist.")
threads_option = click.option(
    "-t", "--threads", type=click.IntRange(min=1), help="Threads. Default: the cores one may use."
)
preset_option = click.option(
    "--preset",
    "presets",
    multiple=True,
    metavar="NAME",
    help="A preset in any case (q4_k_m), a group (k-quants), or a list; repeatable. See `ggq presets`.",
)


def split_list(values: tuple[str, ...]) -> list[str]:
    """``("Q4_K_M,q8_0", "k-quants")`` -> the names, in order."""
    return [name for value in values for name in re.split(r"[,\s]+", value) if name]

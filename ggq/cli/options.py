"""Options that several commands share, each declared once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ggq.cli import logs
from ggq.cli.error_messages import set_current_output
from ggq.cli.output import Output

F = TypeVar("F", bound=Callable[..., Any])


class Listed(click.ParamType[tuple[Any, ...]]):
    """Several values of one kind behind one option: ``512,4096`` -> (512, 4096)."""

    name = "list"

    def __init__(self, kind: click.ParamType[Any]) -> None:
        self._kind = kind

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Any, ...]:
        if isinstance(value, tuple):  # a default
            return value
        return tuple(self._kind.convert(part.strip(), param, ctx) for part in value.split(","))


def output_options(function: F) -> F:
    """``--json -q -v``; the command gets one ``out: Output`` instead."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON value on stdout, for programs.")
    @click.option("-q", "--quiet", is_flag=True, help="No progress and no remarks.")
    @click.option("-v", "--verbose", is_flag=True, help="Show what the tools print.")
    @functools.wraps(function)
    def wrapped(*args: Any, as_json: bool, quiet: bool, verbose: bool, **kwargs: Any) -> Any:
        out = set_current_output(Output(json=as_json, quiet=quiet, verbose=verbose))
        logs.show_on(out)
        return function(*args, out=out, **kwargs)

    return wrapped  # type: ignore[return-value]


def session_options(*, hub: bool = False, presets: bool = False) -> Callable[[F], F]:
    """``--json -q -v``, with ``hub`` ``--offline``, with ``presets`` ``--presets FILE``; the command gets
    ``session: Session`` and ``out: Output`` instead."""

    def decorated(function: F) -> F:
        @functools.wraps(function)
        def wrapped(
            *args: Any, out: Output, offline: bool = False, presets_file: Path | None = None, **kwargs: Any
        ) -> Any:
            from ggq.presets import catalogue
            from ggq.session import Session

            loaded = catalogue.load(presets_file) if presets else None
            session = Session(catalogue=loaded, offline=offline, listener=out.listen)
            return function(*args, session=session, out=out, **kwargs)

        command: Any = output_options(wrapped)
        if presets:
            command = presets_option(command)
        return offline_option(command) if hub else command  # type: ignore[no-any-return]

    return decorated


def model_argument(metavar: str = "MODEL") -> Callable[[F], F]:
    """``MODEL`` and ``--revision``; the command gets ``model: ModelRef``."""

    def decorated(function: F) -> F:
        @functools.wraps(function)
        def wrapped(*args: Any, model: str, revision: str | None, **kwargs: Any) -> Any:
            from ggq.model_ref import parse_reference

            # An error of this is told as the command would tell it, which has not begun.
            set_current_output(Output(json=kwargs.get("as_json", False), quiet=kwargs.get("quiet", False)))
            return function(*args, model=parse_reference(model, revision), **kwargs)

        command: Any = revision_option(wrapped)
        return click.argument("model", metavar=metavar)(command)  # type: ignore[no-any-return]

    return decorated


revision_option = click.option("--revision", help="A branch, tag or commit of the Hub repository.")
offline_option = click.option("--offline", is_flag=True, help="Use only what is in the Hub cache.")
presets_option = click.option(
    "--presets", "presets_file", type=click.Path(path_type=Path, dir_okay=False),
    help="A TOML file with presets of your own (also: GGQ_PRESETS).",
)  # fmt: skip
preset_option = click.option(
    "--preset", "presets", multiple=True, metavar="NAME",
    help="A preset in any case (q4_k_m), a group (k-quants), or a list; repeatable. See `ggq presets`.",
)  # fmt: skip
outdir_option = click.option(
    "--outdir", type=click.Path(path_type=Path, file_okay=False), help="Default: ./NAME, or beside a GGUF.",
)  # fmt: skip


def hub_options(function: F) -> F:
    """``--revision --offline``."""
    return revision_option(offline_option(function))


parse_special_option = click.option(
    "--parse-special", is_flag=True,
    help="Names of special tokens in the text (<|im_start|>) are these tokens, not letters.",
)  # fmt: skip


dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would be done; make no file of it.")
force_option = click.option("--force", is_flag=True, help="Overwrite outputs that exist.")
threads_option = click.option(
    "-t", "--threads", type=click.IntRange(min=1), help="Threads. Default: the cores one may use."
)

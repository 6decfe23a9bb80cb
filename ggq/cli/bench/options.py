"""Options that the measuring commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from ggq.cli.options import Listed, parse_special_option
from ggq.cli.output import Output
from ggq.corpora import CORPORA
from ggq.errors import GgqError
from ggq.llamacpp.offload import ALL_LAYERS
from ggq.measurement.record import Entry

F = TypeVar("F", bound=Callable[..., Any])


def text_options(function: F) -> F:
    """``--text --corpus --corpus-path --parse-special --offline``; the command gets ``text: TextChoice``."""

    @click.option(
        "--text", "text_file", type=click.Path(path_type=Path), metavar="FILE",
        help="Text to measure quality on. Default: heldout.txt beside the model or its checkpoint, else"
        " WikiText-2.",
    )  # fmt: skip
    @click.option(
        "--corpus", metavar="NAME",
        help=f"A published text, fetched once: {', '.join(corpus.name for corpus in CORPORA)}.",
    )  # fmt: skip
    @click.option(
        "--corpus-path", type=click.Path(path_type=Path), metavar="FILE",
        help="That text as a file of yours.",
    )  # fmt: skip
    @parse_special_option
    @click.option("--offline", is_flag=True, help="Use only what is in the caches.")
    @functools.wraps(function)
    def wrapped(
        *args: Any,
        text_file: Path | None,
        corpus: str | None,
        corpus_path: Path | None,
        parse_special: bool,
        offline: bool,
        **kwargs: Any,
    ) -> Any:
        from ggq.measurement.settings import TextChoice

        choice = TextChoice(text_file, corpus, corpus_path, offline, parse_special)
        return function(*args, text=choice, **kwargs)

    return wrapped  # type: ignore[return-value]


class Layers(click.ParamType[int]):
    """A number of layers, or ``all``."""

    name = "n|all"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if value in ("all", ALL_LAYERS):
            return ALL_LAYERS
        return click.IntRange(min=0).convert(value, param, ctx)


layers_option = click.option(
    "-ngl", "--n-gpu-layers", type=Layers(),
    help="Layers on GPUs, the output layer counted. Default: all, if any GPU.",
)  # fmt: skip
rpc_option = click.option(
    "--rpc", type=Listed(click.STRING), default=(), help="Servers whose devices count as GPUs, as host:port.",
)  # fmt: skip
plot_option = click.option(
    "--plot", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Draw what the record has: size against KLD, speed against layers; .png, .svg or .pdf.",
)  # fmt: skip


def draw(out: Output, entries: Sequence[Entry], target: Path) -> bool:
    """Draw what was measured; False, with a warning, where there is nothing to draw."""
    from ggq.measurement import plot

    try:
        plot.plot(entries, target)
    except GgqError as error:
        out.warning(f"Not drawn: {error}")
        return False
    out.info(f"Drawn: {target}")
    return True


record_option = click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="The record. Default: ggq-bench.json beside the first file.",
)  # fmt: skip

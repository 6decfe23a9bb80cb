"""Options that the measuring commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ggq.bench.corpus import CORPORA

F = TypeVar("F", bound=Callable[..., Any])


def text_options(function: F) -> F:
    """``--text --corpus --corpus-path --offline``; the command gets ``text: TextChoice``."""

    @click.option(
        "--text", "text_file", type=click.Path(path_type=Path), metavar="FILE",
        help="Text to measure quality on. Default: heldout.txt beside the model, else WikiText-2.",
    )  # fmt: skip
    @click.option(
        "--corpus", metavar="NAME",
        help=f"A published text, fetched once: {', '.join(corpus.name for corpus in CORPORA)}.",
    )  # fmt: skip
    @click.option(
        "--corpus-path", type=click.Path(path_type=Path), metavar="FILE",
        help="That text as a file of yours.",
    )  # fmt: skip
    @click.option("--offline", is_flag=True, help="Use only what is in the caches.")
    @functools.wraps(function)
    def wrapped(
        *args: Any,
        text_file: Path | None,
        corpus: str | None,
        corpus_path: Path | None,
        offline: bool,
        **kwargs: Any,
    ) -> Any:
        from ggq.measure import TextChoice

        choice = TextChoice(text_file, corpus, corpus_path, offline)
        return function(*args, text=choice, **kwargs)

    return wrapped  # type: ignore[return-value]


record_option = click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="The record. Default: ggq-bench.json beside the first file.",
)  # fmt: skip

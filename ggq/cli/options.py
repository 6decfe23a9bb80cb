"""Options that several commands share, each declared once."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ggq.cli import logs
from ggq.cli.error_messages import set_current_output
from ggq.cli.output import Output
from ggq.errors import UsageProblem
from ggq.system import files

AUTO = "auto"

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


class Size(click.ParamType[int]):
    """Bytes: ``500M``, ``16G`` or ``4GiB``."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        return value if isinstance(value, int) else files.parse_bytes(value)


class Seconds(click.ParamType[float]):
    """A span of time: ``90``, ``90s`` or ``1.5m`` -> seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min)?", str(value).strip())
        if found is None:
            self.fail(f"{value!r} is not a time; write it as 90s or 2m.", param, ctx)
        return float(found[1]) * (60 if (found[2] or "s").startswith("m") else 1)


class _Imatrix(click.Path):
    """The word ``auto`` in any case, or a file."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return AUTO if str(value).lower() == AUTO else super().convert(value, param, ctx)


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


def hub_options(function: F) -> F:
    """``--revision --offline``."""
    function = click.option("--revision", help="A branch, tag or commit of the Hub repository.")(function)
    return click.option("--offline", is_flag=True, help="Use only what is in the Hub cache.")(function)


parse_special_option = click.option(
    "--parse-special", is_flag=True,
    help="Names of special tokens in the text (<|im_start|>) are these tokens, not letters.",
)  # fmt: skip


def quantize_options(function: F) -> F:
    """llama-quantize's own options, by its own names; the command gets ``options: QuantizeOptions``, and
    ``calibration: Text | None``: what to make an importance matrix from, and ``parse_special: bool``: how."""

    @click.option(
        "--imatrix", type=_Imatrix(path_type=Path, dir_okay=False, exists=True), metavar="auto|FILE",
        help="An importance matrix; auto makes that of the base (see `ggq imatrix`), or takes it up again.",
    )  # fmt: skip
    @click.option(
        "--imatrix-text", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
        help="The text for --imatrix auto. Default: Python's language reference.",
    )  # fmt: skip
    @parse_special_option
    @click.option(
        "--tensor-type", "tensor_types", multiple=True, metavar="NAME=TYPE",
        help="A type for tensors whose name matches, as attn_v=q8_0; repeatable.",
    )  # fmt: skip
    @click.option("--output-tensor-type", metavar="TYPE", help="A type for the output tensor.")
    @click.option("--token-embedding-type", metavar="TYPE", help="A type for the token embeddings.")
    @click.option("--keep-split", is_flag=True, help="One shard for each shard of the base.")
    @functools.wraps(function)
    def wrapped(
        *args: Any,
        imatrix: Path | str | None,
        imatrix_text: Path | None,
        parse_special: bool,
        tensor_types: tuple[str, ...],
        output_tensor_type: str | None,
        token_embedding_type: str | None,
        keep_split: bool,
        **kwargs: Any,
    ) -> Any:
        from ggq.llamacpp.tools import QuantizeOptions
        from ggq.quantization import calibration

        if imatrix_text is not None and imatrix != AUTO:
            raise UsageProblem(
                "--imatrix-text is of no use without --imatrix auto.",
                "It is the text that the matrix is made from.",
                "Give --imatrix auto, or leave the text out.",
            )
        if parse_special and imatrix != AUTO:
            raise UsageProblem(
                "--parse-special is of no use without --imatrix auto.",
                "It says how the text is read that the matrix is made from.",
                "Give --imatrix auto, or leave --parse-special out.",
            )
        options = QuantizeOptions(
            imatrix=imatrix if isinstance(imatrix, Path) else None,
            tensor_types=tensor_types,
            output_tensor_type=output_tensor_type,
            token_embedding_type=token_embedding_type,
            keep_split=keep_split,
        )
        text = calibration.read(imatrix_text) if imatrix == AUTO else None
        return function(*args, options=options, calibration=text, parse_special=parse_special, **kwargs)

    return wrapped  # type: ignore[return-value]


def engine_options(function: F) -> F:
    """``--engine --max-memory``; the command gets ``engine: str`` and ``max_memory_bytes: int``."""
    from ggq.quantization.engine import AUTO, ENGINES
    from ggq.quantization.one_pass import MAX_MEMORY_BYTES

    function = click.option(
        "--max-memory", "max_memory_bytes", type=Size(), metavar="SIZE", default=MAX_MEMORY_BYTES,
        show_default=f"{MAX_MEMORY_BYTES >> 20}MiB", help="What the sweep's blocks of rows may take.",
    )(function)  # fmt: skip
    return click.option(
        "--engine", type=click.Choice(ENGINES, case_sensitive=False), default=AUTO, show_default=True,
        help="The sweep makes all presets in one pass, with llama-quantize's bytes; auto leaves to"
        " llama-quantize what the sweep cannot make.",
    )(function)  # fmt: skip


def preset_options(function: F) -> F:
    """``--preset NAME… --presets FILE``."""
    function = click.option(
        "--presets", "presets_file", type=click.Path(path_type=Path, dir_okay=False),
        help="A TOML file with presets of your own (also: GGQ_PRESETS).",
    )(function)  # fmt: skip
    return click.option(
        "--preset", "preset_names", multiple=True, metavar="NAME",
        help="A preset in any case (q4_k_m), a group (k-quants), or a list; repeatable. See `ggq presets`.",
    )(function)  # fmt: skip


dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would be done; make no file of it.")
force_option = click.option("--force", is_flag=True, help="Overwrite outputs that exist.")
threads_option = click.option(
    "-t", "--threads", type=click.IntRange(min=1), help="Threads. Default: the cores one may use."
)
verify_option = click.option(
    "--verify", type=click.Choice(["sampled", "full", "off"], case_sensitive=False), default="sampled",
    show_default=True, help="How the conversion is checked: `full` looks at every value.",
)  # fmt: skip


def outtype_option(*types: str) -> Callable[[F], F]:
    """``--outtype``, one of ``types`` or auto."""
    return click.option(
        "--outtype", type=click.Choice(["auto", *types], case_sensitive=False), default="auto",
        show_default=True, help="The base's type; auto keeps the checkpoint's precision.",
    )  # fmt: skip

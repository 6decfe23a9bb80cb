"""``ggq imatrix``: the importance matrix of a base GGUF."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from ggq.cli.bench.options import Layers
from ggq.cli.options import force_option, output_options, parse_special_option, threads_option
from ggq.cli.output import Output, human_seconds
from ggq.llamacpp.imatrix import LEAST_CONTEXT
from ggq.quantization.imatrix import ImatrixResult, ImatrixSettings
from ggq.quantization.imatrix import imatrix as make_imatrix
from ggq.system import files


@click.command()
@click.argument("base", type=click.Path(path_type=Path))
@click.option(
    "--text", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="The text to make it from. Default: Python's language reference, which needs no network.",
)  # fmt: skip
@click.option("--chunks", type=click.IntRange(min=1), help="Of the text's beginning. Default: all of it.")
@click.option("-c", "--ctx", "context", type=click.IntRange(min=LEAST_CONTEXT), metavar="TOKENS",
              help="Tokens in a chunk. Default: 512, or what the model has, if that is less.")  # fmt: skip
@click.option(
    "-ngl", "--n-gpu-layers", type=Layers(),
    help="Layers on GPUs, the output layer counted. Default: as many as llama.cpp finds room for.",
)  # fmt: skip
@parse_special_option
@threads_option
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False),
    help="Default: NAME-imatrix.gguf beside the base.",
)  # fmt: skip
@force_option
@output_options
def imatrix(
    base: Path,
    text: Path | None,
    chunks: int | None,
    context: int | None,
    n_gpu_layers: int | None,
    parse_special: bool,
    threads: int | None,
    output: Path | None,
    force: bool,
    out: Output,
) -> None:
    """Make the importance matrix of a 16-bit GGUF: how much each column of its weights counts.

    llama-imatrix sums up what flows through the model while it reads a text. The smallest presets need such a
    matrix, others can gain by it. Take a text of the kind that the model is for, but not the one that quality
    is measured on. Stop it at any moment: the same command goes on where it was, and makes the same bytes.

    \b
    ggq imatrix Qwen3-0.6B-BF16.gguf --text calibration.txt
    ggq imatrix Qwen3-0.6B-BF16.gguf --text calibration.txt --chunks 100 -o first-100.gguf
    ggq quantize Qwen3-0.6B-BF16.gguf --preset iq2_xs --imatrix Qwen3-0.6B-imatrix.gguf
    """
    settings = ImatrixSettings(chunks, context, threads, n_gpu_layers, parse_special)
    with out.progress() as listener:
        made = make_imatrix(base, text, settings, output=output, force=force, listener=listener)
    out.result(made)
    _show(out, made)
    shown = f"{shlex.quote(str(base))} --imatrix {shlex.quote(str(made.path))}"
    out.hint(f"next: ggq quantize {shown} --preset iq2_xs")


def _show(out: Output, made: ImatrixResult) -> None:
    out.fields(
        [
            ("output", str(made.path)),
            ("size", f"{files.human_bytes(made.file_bytes)} for {made.entries} tensors"),
            (
                "text",
                f"{made.text_name} (sha256 {made.text_sha256[:16]}…)"
                + (", special tokens parsed" if made.parse_special else ""),
            ),
            ("of it", f"{made.tokens:,} tokens in {made.chunks} chunks of {made.context}"),
            (
                "took",
                "as it was"
                if made.reused
                else human_seconds(made.seconds)
                + (f", from chunk {made.resumed_chunks} on" if made.resumed_chunks else ""),
            ),
        ]
    )

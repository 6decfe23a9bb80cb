"""``ggq imatrix``: the imatrix of a 16-bit GGUF."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from ggq.cli.options import session_options
from ggq.cli.output import Output, human_seconds
from ggq.cli.settings import settings_options
from ggq.quantization.imatrix import imatrix as make_imatrix
from ggq.quantization.imatrix_settings import ImatrixResult, ImatrixSettings
from ggq.session import Session
from ggq.system import files


@click.command()
@click.argument("base", metavar="GGUF", type=click.Path(path_type=Path))
@settings_options(ImatrixSettings)
@session_options()
def imatrix(base: Path, settings: ImatrixSettings, session: Session, out: Output) -> None:
    """Make the imatrix of a 16-bit GGUF: how much each column of its weights counts.

    llama-imatrix sums up what flows through the model while it reads a text. The smallest presets need such a
    matrix, others can gain by it. Take a text of the kind that the model is for, but not the one that quality
    is measured on. Stop it at any moment: the same command goes on where it was, and makes the same bytes.

    \b
    ggq imatrix Qwen3-0.6B-BF16.gguf --text calibration.txt
    ggq imatrix Qwen3-0.6B-BF16.gguf --text calibration.txt --chunks 100 -o first-100.gguf
    ggq quantize Qwen3-0.6B-BF16.gguf --preset iq2_xs --imatrix Qwen3-0.6B-imatrix.gguf
    """
    with out.progress():
        made = make_imatrix(base, settings, session=session)
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

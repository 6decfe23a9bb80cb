"""``ggq run``: a completion from a GGUF, to hear whether it talks."""

from __future__ import annotations

from pathlib import Path

import click

from ggq.cli.options import output_options, threads_option
from ggq.cli.output import Output
from ggq.errors import CannotServe
from ggq.gguf import file as gguf_file
from ggq.llamacpp import toolchain, tools
from ggq.system import hardware


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("prompt")
@click.option("-n", "--tokens", type=click.IntRange(min=1), default=64, show_default=True, help="How many.")
@threads_option
@output_options
def run(model: Path, prompt: str, tokens: int, threads: int | None, out: Output) -> None:
    """Continue PROMPT with the GGUF file MODEL, greedily: always the likeliest token.

    \b
    ggq run Qwen3-0.6B-Q4_K_M.gguf "Once upon a time" -n 40
    """
    file = gguf_file.read_all(model)
    file.require_text_generation()
    if file.context_length and tokens > file.context_length:
        raise CannotServe(
            f"{model.name} has no context of {tokens:,} tokens.",
            f"It was trained for {file.context_length:,}.",
            f"Ask for fewer with -n, at most {file.context_length}.",
        )
    text = tools.complete(toolchain.find(), file.path, prompt, tokens, threads or hardware.usable_cores())
    out.text(text)
    out.result({"model": model, "prompt": prompt, "tokens": tokens, "text": text})

"""The `ggq` command: names the verbs and nothing else."""

from __future__ import annotations

import click

from ggq._version import __version__
from ggq.cli.error_messages import GgqGroup, in_words

VERBS = (
    "convert-and-quantize", "plan", "recommend", "bench", "download", "convert", "imatrix", "quantize", "run",
    "inspect", "presets", "setup", "doctor",
)  # fmt: skip
CONTEXT = {"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "GGQ", "max_content_width": 100}


@click.group(cls=GgqGroup, verbs=VERBS, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="ggq")
def cli() -> None:
    """From a Hugging Face checkpoint to a quantized GGUF that runs on this machine.

    \b
    ggq plan Qwen/Qwen3-0.6B
    ggq recommend Qwen/Qwen3-0.6B
    ggq convert-and-quantize Qwen/Qwen3-0.6B
    ggq convert-and-quantize ./my-checkpoint --preset k-quants --keep-base
    ggq bench my-checkpoint
    ggq doctor
    """


def main() -> None:
    """The console script."""
    with in_words():
        cli(prog_name="ggq")


if __name__ == "__main__":
    main()

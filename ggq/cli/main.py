"""The `ggq` command: registers the verbs and nothing else."""

from __future__ import annotations

import click

from ggq import __version__
from ggq.cli.bench import bench
from ggq.cli.convert import convert
from ggq.cli.convert_and_quantize import convert_and_quantize
from ggq.cli.doctor import doctor
from ggq.cli.download import download
from ggq.cli.errors import GgqGroup
from ggq.cli.inspect import inspect
from ggq.cli.plan import plan
from ggq.cli.presets import presets
from ggq.cli.quantize import quantize
from ggq.cli.run import run
from ggq.cli.setup import setup

CONTEXT = {"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "GGQ", "max_content_width": 100}


@click.group(cls=GgqGroup, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="ggq")
def cli() -> None:
    """From a Hugging Face checkpoint to a quantized GGUF that runs on this machine.

    \b
    ggq plan Qwen/Qwen3-0.6B
    ggq convert-and-quantize Qwen/Qwen3-0.6B
    ggq convert-and-quantize ./my-checkpoint --preset k-quants --keep-base
    ggq bench my-checkpoint
    ggq doctor
    """


for command in (
    convert_and_quantize, plan, bench, download, convert, quantize, run, inspect, presets, setup, doctor,
):  # fmt: skip
    cli.add_command(command)


def main() -> None:
    """The console script."""
    cli(prog_name="ggq")


if __name__ == "__main__":
    main()

"""``ggq bench``: what is measured, one module each; without a word for it, everything."""

from __future__ import annotations

import click

from ggq.cli.bench.all import everything
from ggq.cli.bench.compare import compare
from ggq.cli.bench.memory import memory
from ggq.cli.bench.quality import quality
from ggq.cli.bench.show import show
from ggq.cli.bench.speed import speed


class _BenchGroup(click.Group):
    """A group whose name alone, with files, is a command too: everything."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["all", *args]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_BenchGroup)
def bench() -> None:
    """Measure what presets cost and what they save: quality, speed and memory, each with its error.

    A folder, files or a model without a word before them are measured in everything, as by `all`.

    \b
    ggq bench quants/
    ggq bench quants/ --quick
    ggq bench quality Qwen3-0.6B-BF16.gguf Qwen3-0.6B-Q4_K_M.gguf
    """


for command in (everything, quality, speed, memory, show, compare):
    bench.add_command(command)

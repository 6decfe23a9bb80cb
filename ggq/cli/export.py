"""``ggq export``: a model for another program."""

from __future__ import annotations

import shlex

import click

from ggq.cli.options import output_options
from ggq.cli.output import Output
from ggq.cli.settings import settings_options
from ggq.operations import export as operation
from ggq.operations.export import ExportSettings
from ggq.serving.export import Target
from ggq.session import Session


@click.command()
@click.argument("model", metavar="FILE|FOLDER|MODEL")
@click.option(
    "--to", "target", required=True, type=click.Choice([it.value for it in Target], case_sensitive=False),
    help="The program, or the way to run one.",
)  # fmt: skip
@settings_options(ExportSettings)
@click.option("--dry-run", is_flag=True, help="Show what would be written; write nothing.")
@output_options
def export(model: str, target: str, settings: ExportSettings, dry_run: bool, out: Output) -> None:
    """Hand a model over to another program, with what was chosen for it on this machine.

    The model itself is not copied: files name it, or link to it. What the other program cannot do is said.

    \b
    ggq export Qwen3-0.6B-Q4_K_M.gguf --to ollama --create
    ggq export Qwen3-0.6B-Q4_K_M.gguf --to lm-studio
    ggq export my-model --to systemd --port 9000
    ggq export my-model --to python -o scripts
    """
    with out.progress() as listener:
        session = Session(listener=listener)
        if dry_run:
            _, bundle = operation.prepare(model, Target(target), settings, session)
        else:
            done = operation.export(model, target, settings, session)
    if dry_run:
        for name in bundle.names:
            out.text(str(bundle.folder / name))
        for text in bundle.texts.values():
            out.text(f"\n{text}")
        commands, remarks, files = (
            bundle.commands,
            bundle.remarks,
            [bundle.folder / it for it in bundle.names],
        )
    else:
        for file in done.files:
            out.text(str(file))
        commands, remarks, files = done.commands, done.remarks, list(done.files)
    for remark in remarks:
        out.paragraph(remark)
    for command in commands:
        out.text(f"  {shlex.join(command)}")
    out.result(
        {
            "schema_version": 1,
            "target": target,
            "files": files,
            "commands": commands,
            "remarks": remarks,
            "created": not dry_run and done.created,
        }
    )

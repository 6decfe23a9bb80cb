"""`ggq download`: a model from the Hub into the shared Hub cache."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import click

from ggq.cli.options import dry_run_option, hub_options, output_options
from ggq.cli.output import Output
from ggq.system.files import human_bytes

if TYPE_CHECKING:
    from ggq.hub import Preview


@click.command()
@click.argument("model", metavar="MODEL")
@hub_options
@click.option("--include", multiple=True, metavar="PATTERN", help="Download also what matches; repeatable.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Leave out what matches; repeatable.")
@dry_run_option
@output_options
def download(
    model: str,
    revision: str | None,
    offline: bool,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    dry_run: bool,
    out: Output,
) -> None:
    """Download what a conversion needs of a model into the Hub cache.

    MODEL is org/name or org/name@revision. Of the weights one set is taken (safetensors over .bin), without
    copies in other formats; --include asks for more. Every file is checked against the Hub's digest, and a
    download that breaks off goes on when the same command is run again.

    \b
    ggq download Qwen/Qwen3-0.6B
    ggq download Qwen/Qwen3-0.6B --dry-run
    ggq download unsloth/Qwen3-0.6B-GGUF --include '*Q4_K_M*'
    """
    from ggq import hub
    from ggq.model_ref import parse_reference

    ref = parse_reference(model, revision)
    with out.progress() as listener:
        if dry_run:
            ahead = hub.preview(ref, include=include, exclude=exclude, offline=offline, listener=listener)
            show_preview(out, ahead)
            return
        done = hub.download(ref, include=include, exclude=exclude, offline=offline, listener=listener)
    out.result(done)
    out.fields(
        [
            ("model", f"{done.repo_id}@{done.commit}"),
            ("files", str(len(done.files))),
            ("downloaded", human_bytes(done.downloaded_bytes)),
            ("from the cache", human_bytes(done.cached_bytes)),
            ("folder", str(done.folder)),
        ]
    )
    names = [file.path for file in done.files]
    ggufs = [name for name in names if name.lower().endswith(".gguf")]
    if ggufs and not hub.weight_files(names):
        out.hint(f'next: ggq run {shlex.quote(str(done.folder / min(ggufs)))} "Once upon a time"')
    else:
        out.hint(f"next: ggq convert {shlex.quote(str(ref))}")


def show_preview(out: Output, ahead: Preview) -> None:
    """What a download would bring: the table of files, and the sums."""
    out.result(ahead)
    out.table(
        ("file", "bytes", "cached"),
        [(file.path, f"{file.file_bytes:,}", "yes" if file.cached else "no") for file in ahead.files],
        right=(1,),
    )
    out.fields(
        [
            ("model", f"{ahead.repo_id}@{ahead.commit}"),
            ("license", (ahead.license or "not said") + (", gated" if ahead.gated else "")),
            ("to download", human_bytes(ahead.needed_bytes)),
            ("in the cache", human_bytes(ahead.cached_bytes)),
            ("left out", f"{ahead.left_out_files} files, {human_bytes(ahead.left_out_bytes)}"),
            ("free disk", f"{human_bytes(ahead.free_bytes)} at {ahead.cache}"),
        ]
    )
    if ahead.needed_bytes > ahead.free_bytes:
        out.warning("that is more than the disk has free; HF_HOME chooses another folder.")

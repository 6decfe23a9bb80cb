"""``ggq cache``: what the caches hold."""

from __future__ import annotations

import sys
import time
from dataclasses import replace

import click

from ggq.cli.options import output_options
from ggq.cli.output import Output, clean
from ggq.cli.settings import settings_options
from ggq.errors import CannotServe, UsageProblem
from ggq.hub import client
from ggq.operations import cache as operation
from ggq.operations.cache import Cached, CacheSettings
from ggq.system import files, places


@click.command()
@click.argument("names", nargs=-1, metavar="NAME...")
@settings_options(CacheSettings)
@click.option("--dry-run", is_flag=True, help="Show what --remove would remove.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@output_options
def cache(names: tuple[str, ...], settings: CacheSettings, dry_run: bool, yes: bool, out: Output) -> None:
    """List what ggq's cache and the Hub cache hold, or remove some of it.

    The Hub cache is shared: other programs use what is there, and download it again when it is gone.

    \b
    ggq cache
    ggq cache --older-than 30d
    ggq cache Qwen/Qwen3-0.6B --remove
    ggq cache Qwen/Qwen3-0.6B@c1899de --remove --dry-run
    """
    settings = replace(settings, names=names)
    if settings.remove and not names and settings.older_than_days is None:
        raise UsageProblem(
            "Nothing says what is to be removed.",
            "",
            "Give names as `ggq cache` lists them, or --older-than.",
        )
    found = operation.cached(settings)
    _show(out, found)
    removed = settings.remove and not dry_run and bool(found)
    if removed:
        _ask(out, found, yes)
        freed = operation.remove(found)
        out.text(f"Removed; {files.human_bytes(freed)} are free again.")
    out.result(
        {
            "schema_version": 1,
            "hub_cache": client.cache_dir(),
            "ggq_cache": places.cache(),
            "disk_bytes": sum(it.disk_bytes for it in found),
            "removed": removed,
            "entries": [
                {"name": it.name, "kind": it.kind, "what": it.what, "disk_bytes": it.disk_bytes,
                 "used_at": _time(it.used_at), "path": it.folder}
                for it in found
            ],
        }
    )  # fmt: skip


def _show(out: Output, found: list[Cached]) -> None:
    if not found:
        out.text("There is nothing.")
        return
    out.table(
        ["name", "cache", "size", "last used", "what"],
        [
            [it.name, it.kind, files.human_bytes(it.disk_bytes), _time(it.used_at)[:10], it.what]
            for it in found
        ],
        right=(2,),
    )
    total = files.human_bytes(sum(it.disk_bytes for it in found))
    out.text(f"{total} in {client.cache_dir()} and {places.cache()}")


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _ask(out: Output, found: list[Cached], yes: bool) -> None:
    if yes:
        return
    total = files.human_bytes(sum(it.disk_bytes for it in found))
    what = f"{len(found)} entries" if len(found) > 1 else found[0].name
    if out.as_json or not sys.stdin.isatty():
        raise CannotServe(
            "Nothing is removed without a word from you.",
            f"It would be {what}, {total}.",
            "Add --yes, or --dry-run to see it alone.",
        )
    click.confirm(clean(f"Remove {what}, {total}?"), abort=True, err=True)

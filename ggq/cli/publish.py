"""``ggq publish``: files of a folder in a repository of the Hub."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ggq.cli.options import output_options
from ggq.cli.output import Output, clean
from ggq.cli.settings import settings_options
from ggq.errors import CannotServe
from ggq.operations import publish as operation
from ggq.operations.publish import PublishPlan, PublishSettings
from ggq.session import Session
from ggq.system import files


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="DIR")
@click.option("--repo", "repo_id", required=True, metavar="YOU/NAME", help="The repository; made if missing.")
@settings_options(PublishSettings)
@click.option("--dry-run", is_flag=True, help="Show the files and the card; send nothing.")
@output_options
def publish(folder: Path, repo_id: str, settings: PublishSettings, dry_run: bool, out: Output) -> None:
    """Upload the GGUFs of DIR to the Hub, with a model card and checksums.

    Only what changed is sent. A run that is broken off goes on with the same command. All digests are
    compared afterwards. The card says what was made and measured: run `ggq bench DIR` before.

    \b
    ggq publish my-model --repo you/My-Model-GGUF --dry-run
    ggq publish my-model --repo you/My-Model-GGUF --private
    ggq publish my-model --repo you/My-Model-GGUF --preset q4_k_m,q8_0 --tag code
    """
    bars = not (out.as_json or out.is_quiet) and sys.stderr.isatty()
    with out.progress() as listener:
        session = Session(listener=listener)
        plan = operation.prepare(folder, repo_id, settings, session)
    _show(out, plan)
    if dry_run:
        out.text(f"\n{plan.card}")
        out.result(_as_json(plan))
        return
    _ask(out, plan)
    with out.progress() as listener:
        done = operation.execute(plan, Session(listener=listener), bars=bars)
    if done.sent:
        size = files.human_bytes(done.sent_bytes)
        out.text(f"Sent {len(done.sent)} files, {size}; every digest was compared with the Hub's.")
    else:
        out.text("Nothing was sent: the repository has it all.")
    out.text(done.pull_request or done.url)
    out.result(
        {
            "schema_version": 1,
            "repo_id": plan.repo_id,
            "commit": done.commit,
            "url": done.url,
            "pull_request": done.pull_request,
            "sent": done.sent,
            "sent_bytes": done.sent_bytes,
        }
    )


def _show(out: Output, plan: PublishPlan) -> None:
    where = f"{plan.repo_id}{f'@{plan.revision}' if plan.revision else ''}"
    out.text(f"{where}: {'a new repository' if plan.is_new else 'there already'}")
    out.table(
        ["file", "size", "state"],
        [
            [
                it.path,
                files.human_bytes(it.file_bytes) if it.source else "-",
                it.state if it.source else "written",
            ]
            for it in plan.files
        ],
        right=(1,),
    )
    for remark in plan.remarks:
        out.info(remark)


def _ask(out: Output, plan: PublishPlan) -> None:
    """Raises CannotServe where nobody is there to answer, Abort where the answer is no."""
    if plan.settings.yes or not plan.questions:
        return
    if out.as_json or not sys.stdin.isatty():
        raise CannotServe(
            "This is not published without a word from you.",
            " ".join(plan.questions),
            "Add --yes if the answer is yes.",
        )
    for question in plan.questions:
        click.confirm(clean(question), abort=True, err=True)


def _as_json(plan: PublishPlan) -> dict[str, object]:
    return {
        "schema_version": 1,
        "repo_id": plan.repo_id,
        "is_new": plan.is_new,
        "private": plan.private,
        "revision": plan.revision,
        "create_pr": plan.create_pr,
        "files": [
            {"path": it.path, "file_bytes": it.file_bytes, "sha256": it.sha256, "state": it.state}
            for it in plan.files
        ],
        "upload_bytes": plan.upload_bytes,
        "questions": plan.questions,
        "remarks": plan.remarks,
        "card": plan.card,
    }

"""``ggq serve``: models behind a web page and OpenAI's interface, by llama-server."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Any

import click

from ggq.cli.error_messages import Terminated
from ggq.cli.options import dry_run_option, revision_option, session_options
from ggq.cli.output import Output
from ggq.cli.settings import settings_options
from ggq.model_ref import parse_reference
from ggq.serving.server_plan import ServerPlan, ServeSettings
from ggq.serving.settings import Use
from ggq.session import Session

if TYPE_CHECKING:
    from ggq.serving.server import Ready

_ANSWERS = {
    Use.TEXT: "/v1/chat/completions",
    Use.EMBEDDINGS: "/v1/embeddings",
    Use.RERANKING: "/v1/rerank",
}


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="FILE|FOLDER|MODEL...")
@settings_options(ServeSettings)
@revision_option
@dry_run_option
@session_options(hub=True)
def serve(
    models: tuple[str, ...],
    settings: ServeSettings,
    revision: str | None,
    dry_run: bool,
    session: Session,
    out: Output,
) -> None:
    """Serve models on this machine: a web page at / and OpenAI's interface at /v1.

    A model is named as for `ggq run`, and run by llama-server with what is chosen for this machine. Several
    models share one address: each is loaded when a client first names it. A model that makes embeddings, or
    scores texts, is served so. A projector (mmproj) beside a model lets it see pictures. Ctrl-C or SIGTERM
    ends the server. With --dry-run nothing is started, and the command line is shown.

    \b
    ggq serve Qwen3-0.6B-Q4_K_M.gguf
    ggq serve Qwen/Qwen3-0.6B --port 9000 --parallel 4 -c 4096
    ggq serve chat.gguf embeddings.gguf --host 0.0.0.0 --api-key auto
    """
    settings.check()
    with out.progress():
        from ggq.operations.ready import ready
        from ggq.serving.server import execute, ini_text
        from ggq.serving.server_plan import prepare

        named = [parse_reference(it, revision) for it in models]
        files = [ready(it, session, settings.load).file.path for it in named]
        plan = prepare(files, settings, session)
        _show(out, plan, ini_text(plan) if plan.is_router else "")
        if dry_run:
            out.result(_as_json(plan))
            return

        def told(found: Ready) -> None:
            _tell_ready(out, plan, found)
            out.result({**_as_json(plan), "process_id": found.process_id, "seconds": found.seconds})
            sys.stdout.flush()

        try:
            execute(plan, session, told)
        except KeyboardInterrupt as stop:
            # A server is meant to be ended: that is no failure.
            out.info("\nEnded by SIGTERM." if isinstance(stop, Terminated) else "\nEnded.")


def _show(out: Output, plan: ServerPlan, ini: str) -> None:
    """How each model is run."""
    for name, chosen in plan.models.items():
        seeing = (
            [("projector", chosen.serving.companions.projector.name)]
            if chosen.serving.companions.projector
            else []
        )
        rows = [("model", name), ("file", str(chosen.file.path)), *seeing, *chosen.described()]
        if not plan.is_router:
            rows += [("log", str(plan.log_file)), ("command", shlex.join(plan.command()))]
        out.fields(rows)
        out.text()
    if plan.is_router:
        out.fields([("log", str(plan.log_file)), ("command", shlex.join(plan.command()))])
        out.text()
        out.info(f"Each model is loaded when a client names it, at most {plan.most_models} at once.")
        if out.is_verbose:
            out.echo(ini)


def _tell_ready(out: Output, plan: ServerPlan, found: Ready) -> None:
    url = found.url
    out.text(f"Ready after {found.seconds:.1f} s: {url}")
    for use in sorted({it.use for it in plan.models.values()}):
        out.text(f"  {url}{_ANSWERS[use]}")
    if plan.endpoint.host != plan.endpoint.reachable_host:
        out.text(f"  It listens at all addresses of this machine ({plan.endpoint.host}).")
    if plan.endpoint.api_key:
        out.text(f"  API key: {plan.endpoint.api_key}")
    out.info("Ctrl-C ends it.")


def _as_json(plan: ServerPlan) -> dict[str, Any]:
    return {
        "url": plan.endpoint.url,
        "api_key": plan.endpoint.api_key,
        "log_file": plan.log_file,
        "command": plan.command(),
        "models": {
            name: {"file": it.file.path, "use": it.use, "parameters": dict(it.described())}
            for name, it in plan.models.items()
        },
    }

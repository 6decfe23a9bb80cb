"""The group of all commands, which are imported when they are called."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Mapping
from typing import Any

import click

from ggq.cli.error_messages import (
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    Terminated,
    current_output,
    debugging,
    failed_threads,
)
from ggq.cli.explain import explain
from ggq.cli.output import Output, as_json, clean
from ggq.errors import UsageProblem


class GgqGroup(click.Group):
    """The top-level group: verbs that are imported when called, "did you mean", and one place where
    exceptions become messages.

    ``verbs``: name -> its line in the list of commands, for which no verb is imported; the main job first.
    The verb ``a-b`` is the function ``a_b`` of the module ``ggq.cli.a_b``.
    """

    def __init__(self, *arguments: Any, verbs: Mapping[str, str], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._verbs = verbs

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._verbs)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(self._verbs.items()))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._verbs:
            return None
        name = cmd_name.replace("-", "_")
        command: click.Command = getattr(importlib.import_module(f"ggq.cli.{name}"), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            hint = f" Did you mean `ggq {near[0]}`?" if near else " `ggq --help` lists them."
            raise click.UsageError(f"There is no command {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            if "--json" in sys.argv:
                problem = UsageProblem(error.format_message(), "", "See --help.")
                Output(json=True).result(as_json(problem))
            error.message = clean(error.message)  # type: ignore[misc]  # click prints it
            raise
        except (click.exceptions.Exit, click.ClickException, click.Abort):
            raise
        except KeyboardInterrupt as stop:
            if failed_threads and isinstance(failure := failed_threads[0], Exception):
                explained = explain(failure)
                current_output().error(explained)
                ctx.exit(explained.exit_code)
            how, code = (
                ("Ended by SIGTERM", EXIT_TERMINATED)
                if isinstance(stop, Terminated)
                else ("Stopped", EXIT_INTERRUPTED)
            )
            current_output().echo(f"\n{how}. What was finished is kept; the same command resumes.")
            ctx.exit(code)
        except BrokenPipeError:
            ctx.exit(1)  # the reader has seen enough (`ggq … | head`)
        except BaseException as error:
            if debugging() or not isinstance(error, Exception):
                raise
            explained = explain(error)
            current_output().error(explained)
            ctx.exit(explained.exit_code)

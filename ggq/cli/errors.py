"""What a person sees when something fails: words, an exit code, and a traceback only when asked for."""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from ggq.cli.output import Output, as_json
from ggq.errors import DiskFull, GgqError, OutputProblem, UsageProblem

EXIT_INTERRUPTED = 130


class GgqGroup(click.Group):
    """The top-level group: verbs that are imported when called, "did you mean", and one place where
    exceptions become messages.

    ``verbs``: the main job first. The verb ``a-b`` is the function ``a_b`` of the module ``ggq.cli.a_b``.
    """

    def __init__(self, *arguments: Any, verbs: Sequence[str], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._verbs = verbs

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._verbs)

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
            raise
        except (click.exceptions.Exit, click.ClickException, click.Abort):
            raise
        except KeyboardInterrupt:
            click.echo("\nStopped. What was finished is kept; the same command resumes.", err=True)
            ctx.exit(EXIT_INTERRUPTED)
        except BrokenPipeError:
            # The reader has seen enough (`ggq … | head`); Python must not complain at exit either.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(1)
        except BaseException as error:
            if os.environ.get("GGQ_DEBUG") == "1" or not isinstance(error, Exception):
                raise
            explained = explain(error)
            current_output().error(explained)
            ctx.exit(explained.exit_code)


def explain(error: Exception) -> GgqError:
    """Any exception as one that can be printed."""
    if isinstance(error, GgqError):
        return error
    if isinstance(error, OSError) and error.errno is not None:
        where = error.filename or "A file"
        kind = DiskFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else OutputProblem
        return kind(f"{where}: {error.strerror}.", "", "Mend that, then run the same command again.")
    if isinstance(error, MemoryError):
        return GgqError("Memory ran out.", str(error), "Close other programs, or choose a smaller model.")
    return GgqError(
        f"ggq met something that it does not know: {type(error).__name__}.",
        str(error),
        "Run it again with GGQ_DEBUG=1 in the environment and report what it prints.",
    )


_current: list[Output] = []


def set_current_output(output: Output) -> Output:
    """Remember the output of the running command, for an error that ends it."""
    _current[:] = [output]
    return output


def current_output() -> Output:
    """That of the running command; before there is one, as its arguments ask for it."""
    return _current[0] if _current else Output(json="--json" in sys.argv)

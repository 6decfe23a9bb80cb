"""What a person sees when something fails: words, an exit code, and a traceback only when asked for."""

from __future__ import annotations

import difflib
import importlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from ggq.cli import streams
from ggq.cli.explain import explain
from ggq.cli.output import Output, as_json, clean
from ggq.errors import UsageProblem
from ggq.system import places

EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class Terminated(KeyboardInterrupt):
    """SIGTERM: it ends the command in the same order as Ctrl-C does."""


def _terminate(*_: Any) -> None:
    raise Terminated


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
            error.message = clean(error.message)  # type: ignore[misc]  # click prints it
            raise
        except (click.exceptions.Exit, click.ClickException, click.Abort):
            raise
        except KeyboardInterrupt as stop:
            if _failed_threads and isinstance(failure := _failed_threads[0], Exception):
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
            if _debugging() or not isinstance(error, Exception):
                raise
            explained = explain(error)
            current_output().error(explained)
            ctx.exit(explained.exit_code)


@contextmanager
def in_words() -> Iterator[None]:
    """The whole life of the command, with what comes before a verb runs and after it: nothing of it ends with
    a traceback, on whatever streams. GGQ_DEBUG=1 leaves Python as it is."""
    if _debugging():
        yield
        return
    if os.name == "posix":
        streams.install()
        signal.signal(signal.SIGTERM, _terminate)
    threading.excepthook = _thread_failed
    sys.unraisablehook = lambda _: (
        None
    )  # what an object's end or a hook of fork() raises: nobody can act on it
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # Python's warnings speak to who writes a program, not to who runs it
    try:
        if (notice := places.shelter()) is not None:
            current_output().info(notice)
        try:
            yield
        finally:
            streams.flush()
    except KeyboardInterrupt as stop:
        sys.exit(EXIT_TERMINATED if isinstance(stop, Terminated) else EXIT_INTERRUPTED)
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:
        explained = explain(error)
        current_output().error(explained)
        sys.exit(explained.exit_code)


def _debugging() -> bool:
    return os.environ.get("GGQ_DEBUG") == "1"


_failed_threads: list[BaseException] = []


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    """A thread that dies ends the command: the main thread would wait for it, or go on without its work."""
    if failure.exc_value is not None:
        _failed_threads.append(failure.exc_value)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)  # it may be in a system call


_current: list[Output] = []


def set_current_output(output: Output) -> Output:
    """Remember the output of the running command, for an error that ends it."""
    _current[:] = [output]
    return output


def current_output() -> Output:
    """That of the running command; before there is one, as its arguments ask for it."""
    return _current[0] if _current else Output(json="--json" in sys.argv)

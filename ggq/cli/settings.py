"""Click options of settings classes (``ggq.settings``), so that each option is declared in one place."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import click

from ggq.errors import UsageProblem
from ggq.settings import Option, Setting, settings_of

F = TypeVar("F", bound=Callable[..., Any])


def settings_options(kind: type, name: str = "settings", *, leave: Collection[str] = ()) -> Callable[[F], F]:
    """The options of a settings class; the command gets one ``name``: a ``kind`` instead.

    ``leave``: fields that this command does not offer.
    """
    settings = [it for it in settings_of(kind) if it.name not in leave]

    def decorated(function: F) -> F:
        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            taken = {it.name: kwargs.pop(it.name) for it in _flat(settings)}
            return function(*args, **{name: _made(kind, settings, taken)}, **kwargs)

        command: Any = wrapped
        for setting in reversed(list(_flat(settings))):
            assert setting.option is not None, "it has one, or it is a group"
            command = _option(setting, setting.option)(command)
        return command  # type: ignore[no-any-return]

    return decorated


def _flat(settings: Collection[Setting]) -> Iterator[Setting]:
    for it in settings:
        yield from _flat(it.group) if it.group else (it,)


def _made(kind: type, settings: Collection[Setting], taken: dict[str, Any]) -> Any:
    return kind(
        **{it.name: _made(it.kind, it.group, taken) if it.group else taken[it.name] for it in settings}
    )


def _option(setting: Setting, option: Option) -> Callable[[F], F]:
    flag = setting.kind is bool
    given: dict[str, Any] = (
        {"is_flag": True, "default": setting.default} if flag else {"type": _type(setting.kind, option)}
    )
    if setting.many:
        given |= {"multiple": True, "callback": functools.partial(_joined, setting.default, option.split)}
    elif not flag:
        # The help would show the name of an enum's member; its value is what a person types.
        given["default"] = setting.default.value if isinstance(setting.default, StrEnum) else setting.default
    if option.shown_default is not None or setting.default not in (None, False, ()):
        given["show_default"] = option.shown_default or True
    return click.option(
        *option.flags, *option.aliases, setting.name, cls=_Option, aliases=option.aliases, help=option.help,
        metavar=option.metavar, **given,
    )  # fmt: skip


def _joined(
    default: Any, split: bool, _ctx: click.Context, _param: click.Parameter, values: tuple[Any, ...]
) -> Any:
    """The values of an option that may be repeated, each of them a list where it is ``split``."""
    if not values:
        return default
    return tuple(it for part in values for it in part) if split else tuple(values)


class _Option(click.Option):
    """An option with names that the help does not show."""

    def __init__(self, *args: Any, aliases: Collection[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._aliases = aliases

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        every = self.opts
        self.opts = [it for it in every if it not in self._aliases]
        try:
            return super().get_help_record(ctx)
        finally:
            self.opts = every


def _type(kind: Any, option: Option) -> click.ParamType[Any]:
    made = _plain_type(kind, option)
    return _Listed(made) if option.split else made


def _plain_type(kind: Any, option: Option) -> click.ParamType[Any]:
    if option.parse is not None:
        return _Parsed(option.parse, option.metavar or "value")
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return _Choice(kind, option.choices or tuple(kind))
    if kind is Path:
        return click.Path(
            path_type=Path, exists=option.exists, file_okay=not option.folder, dir_okay=option.folder
        )
    if option.least is not None:
        return click.IntRange(min=int(option.least)) if kind is int else click.FloatRange(min=option.least)
    if kind is int:
        return click.INT
    return click.FLOAT if kind is float else click.STRING


class _Parsed(click.ParamType[Any]):
    """A value that a function of ours makes of a word."""

    def __init__(self, parse: Callable[[str], Any], name: str) -> None:
        self._parse = parse
        self.name = name.lower()

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):  # a default
            return value
        try:
            return self._parse(value)
        except UsageProblem as problem:
            self.fail(" ".join(filter(None, (problem.what, problem.why, problem.next_step))), param, ctx)
        except ValueError as problem:
            self.fail(str(problem), param, ctx)


class _Choice(click.Choice[str]):
    """A word of a StrEnum, in any case."""

    def __init__(self, kind: type[StrEnum], offered: Collection[StrEnum]) -> None:
        super().__init__([it.value for it in offered], case_sensitive=False)
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return self._kind(super().convert(value, param, ctx))


class _Listed(click.ParamType[tuple[Any, ...]]):
    """Several values of one kind behind one option: ``512,4096`` -> (512, 4096)."""

    name = "list"

    def __init__(self, kind: click.ParamType[Any]) -> None:
        self._kind = kind

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        return self._kind.get_metavar(param, ctx)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Any, ...]:
        if isinstance(value, tuple):  # a default
            return value
        return tuple(self._kind.convert(part.strip(), param, ctx) for part in value.split(","))

"""Settings are declared once: a frozen dataclass whose fields carry their option of the command line.

    threads: Annotated[int | None, Option("-t", "--threads", least=1, help="Threads.")] = None

``ggq.cli.settings`` makes options of it, and ``filled`` takes the API's keywords.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

from ggq.errors import UsageProblem

S = TypeVar("S")
Word = TypeVar("Word", bound=StrEnum)


@dataclass(frozen=True, init=False)
class Option:
    """How a field is given on the command line.

    ``flags``: its names; ``aliases``: names that work and are not shown; ``least``: the smallest number;
    ``parse``: makes a value of a word, and raises ValueError or UsageProblem for a wrong one (``metavar``
    then says what is expected); ``choices``: those of a StrEnum that are offered; ``split``: several values
    may stand behind one flag, with commas between;
    ``exists``: a path that must be there; ``folder``: it is one; ``shown_default``: in the help, in place of
    the field's default.
    """

    flags: tuple[str, ...]
    help: str
    aliases: tuple[str, ...]
    least: float | None
    parse: Callable[[str], Any] | None
    metavar: str | None
    choices: tuple[StrEnum, ...] | None
    split: bool
    exists: bool
    folder: bool
    shown_default: str | None

    def __init__(  # noqa: PLR0913  # it is the declaration itself
        self,
        *flags: str,
        help: str,
        aliases: tuple[str, ...] = (),
        least: float | None = None,
        parse: Callable[[str], Any] | None = None,
        metavar: str | None = None,
        choices: tuple[StrEnum, ...] | None = None,
        split: bool = False,
        exists: bool = False,
        folder: bool = False,
        shown_default: str | None = None,
    ) -> None:
        given = dict(locals())
        for name in (field.name for field in dataclasses.fields(Option)):
            object.__setattr__(self, name, given[name])


@dataclass(frozen=True)
class Setting:
    """A field of settings. ``kind``: its type, of an optional one without None, of a tuple that of its items;
    ``group``: the field's own settings, where it is a dataclass and has no option of its own."""

    name: str
    kind: Any
    many: bool
    option: Option | None
    default: Any
    group: tuple[Setting, ...] = ()


def settings_of(kind: type) -> tuple[Setting, ...]:
    """The fields of a settings class that have an option, in order, and those that are groups of such."""
    hints = typing.get_type_hints(kind, include_extras=True)
    found = (_setting(field, hints[field.name]) for field in dataclasses.fields(kind))
    return tuple(it for it in found if it.option or it.group)


def _setting(field: dataclasses.Field[Any], hint: Any) -> Setting:
    option = None
    if typing.get_origin(hint) is Annotated:
        hint, *marks = typing.get_args(hint)
        option = next((it for it in marks if isinstance(it, Option)), None)
    kind, many = _bare(hint)
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    group = settings_of(kind) if option is None and dataclasses.is_dataclass(kind) else ()  # type: ignore[arg-type]
    return Setting(field.name, kind, many, option, default, group)


def _bare(hint: Any) -> tuple[Any, bool]:
    """A type without None, and of a tuple the type of its items."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        (hint, *_) = (it for it in typing.get_args(hint) if it is not type(None))
    if typing.get_origin(hint) is tuple:
        return typing.get_args(hint)[0], True
    return hint, False


def settle(settings: Any) -> None:
    """Make of the words that a caller gave what they name; for the ``__post_init__`` of settings. Raises
    UsageProblem, ValueError."""
    hints = typing.get_type_hints(type(settings), include_extras=True)
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        settled = _valued(value, _setting(field, hints[field.name]))
        if settled is not value:
            object.__setattr__(settings, field.name, settled)


def filled(kind: type[S], given: S | None, keywords: Mapping[str, Any]) -> S:
    """``given`` (or the defaults), with what ``keywords`` say in place; those of a group by their own names.

    Words become what they name, as on the command line: a path, a size, a choice; a single value a tuple.
    Raises UsageProblem for a word that is no choice, TypeError for a name that is no setting.
    """
    settings = kind() if given is None else given
    left = dict(keywords)
    changed: S = _changed(settings, left)
    if left:
        raise TypeError(f"{kind.__name__} has no setting {', '.join(map(repr, left))}")
    return changed


def _changed(settings: Any, left: dict[str, Any]) -> Any:
    """``settings`` with what ``left`` has of it, which is taken from there."""
    changes = {}
    hints = typing.get_type_hints(type(settings), include_extras=True)
    for field in dataclasses.fields(settings):
        setting = _setting(field, hints[field.name])
        if field.name in left:
            changes[field.name] = _valued(left.pop(field.name), setting)
        elif setting.group:
            changes[field.name] = _changed(getattr(settings, field.name), left)
    return dataclasses.replace(settings, **changes)


def _valued(value: Any, setting: Setting) -> Any:
    if setting.many and value is not None:
        values = (value,) if isinstance(value, (str, int, float, Path)) else value
        return tuple(_single(it, setting) for it in values)
    return _single(value, setting)


def _single(value: Any, setting: Setting) -> Any:
    if not isinstance(value, str) or isinstance(value, StrEnum):
        return value
    kind, option = setting.kind, setting.option
    if option and option.parse:
        return option.parse(value)
    if isinstance(kind, type) and issubclass(kind, Path):
        return Path(value)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return choice(value, setting.name, kind, option.choices if option else None)
    return value


def choice(word: str, name: str, kind: type[Word], among: Collection[StrEnum] | None = None) -> Word:
    """The choice (one of ``among``) that a word names, in any case. Raises UsageProblem."""
    offered = [it for it in kind if among is None or it in among]
    found = next((it for it in offered if it.value.lower() == word.lower()), None)
    if found is None:
        raise UsageProblem(f"There is no {name} {word!r}.", "", f"Choose one of {', '.join(offered)}.")
    return found

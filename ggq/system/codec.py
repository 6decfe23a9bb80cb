"""Saved JSON and the dataclasses that wrote it: one converter for all that ggq writes down and reads again.

Nothing is coerced: a text in the place of a number is an error. A key that is not known is passed over, and
one that is missing takes the field's default, so that files of older and of newer versions stay readable. A
change that an older version must not lose needs another ``schema_version``.

Two marks of a field (``Annotated[Ground, Inlined()]``): one that is ``Inlined`` has no key of its own, and
its parts stand among its owner's, as in the files of before there was a class for them; one that is
``LeftOutIfDefault`` is not written while it is at its default.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

from ggq.errors import GgqError, OutputProblem
from ggq.system.untrusted import shown

if TYPE_CHECKING:
    from cattrs import Converter

T = TypeVar("T")


class WrongContent(ValueError):
    """What was read is not of the class that was wanted; its text says where, and what is there."""


@dataclass(frozen=True)
class Inlined:
    """Marks a field whose parts stand among its owner's; where ``with_key`` is missing, it is None."""

    with_key: str | None = None


@dataclass(frozen=True)
class LeftOutIfDefault:
    """Marks a field that is not written while it is at its default."""


def encode(value: Any) -> Any:
    """A dataclass as what JSON can hold: texts for paths and words of a choice."""
    return _converter().unstructure(value)


def decode(kind: type[T], value: Any) -> T:
    """What ``encode`` made, or ``json.loads`` of it. Raises WrongContent."""
    from cattrs.errors import BaseValidationError

    try:
        return _converter().structure(value, kind)
    except WrongContent:
        raise
    except BaseValidationError as error:
        raise WrongContent(_first_fault(error)) from error
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise WrongContent(f"{type(error).__name__}: {error}") from error


def read(kind: type[T], file: Path, *, next_step: str, problem: type[GgqError] = OutputProblem) -> T:
    """The content of a JSON file. Raises FileNotFoundError, and ``problem`` for a file that cannot be read or
    holds something else."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise problem(f"{file} cannot be read.", f"{error}.", next_step) from error
    try:
        return decode(kind, value)
    except WrongContent as error:
        raise problem(f"{file} is not what this ggq writes there.", f"{error}.", next_step) from error


def form(
    kind: type[T],
    *,
    written: Callable[[dict[str, Any]], dict[str, Any]] = lambda value: value,
    read: Callable[[Any], Any] = lambda value: value,
) -> None:
    """Say that a dataclass has another form in JSON than its own: ``written`` makes it of the plain one,
    ``read`` the plain one of it, and of what earlier versions wrote."""
    _FORMS[kind] = _Form(written, read)
    _converter.cache_clear()


@dataclass(frozen=True)
class _Form:
    written: Callable[[dict[str, Any]], dict[str, Any]] = lambda value: value
    read: Callable[[Any], Any] = lambda value: value


_FORMS: dict[Any, _Form] = {}


@functools.cache
def _converter() -> Converter:
    from cattrs import Converter
    from cattrs.strategies import configure_union_passthrough

    made = Converter()
    configure_union_passthrough(str | bool | int | float | None, made)
    made.register_structure_hook(str, lambda value, _: _exactly(value, "a text", str))
    # Words of a choice are texts, too: without a hook of their own they would stay what they are.
    made.register_structure_hook(StrEnum, lambda value, kind: kind(value))
    made.register_structure_hook(bool, lambda value, _: _exactly(value, "true or false", bool))
    made.register_structure_hook(int, lambda value, _: _exactly(value, "a whole number", int))
    made.register_structure_hook(float, lambda value, _: float(_exactly(value, "a number", int, float)))
    made.register_structure_hook(Path, lambda value, _: Path(_exactly(value, "a path", str)))
    made.register_unstructure_hook(Path, str)
    made.register_unstructure_hook_func(_is_error, _words)
    made.register_structure_hook_func(_is_error, lambda value, _: _error(value))
    made.register_unstructure_hook_factory(_is_special, lambda kind: _writer(made, kind))
    # Of what holds others, cattrs would take whatever can be walked through: a text for a list of letters.
    _require(made, lambda kind: dataclasses.is_dataclass(kind) and not _is_special(kind), "an object", dict)
    _require(made, lambda kind: get_origin(kind) in (dict, Mapping), "an object", dict)
    _require(made, lambda kind: get_origin(kind) in (tuple, list, Sequence), "a list", list, tuple)
    made.register_structure_hook_factory(_is_special, lambda kind: _reader(made, kind))
    return made


def _require(converter: Converter, applies: Callable[[Any], bool], what: str, *accepted: type) -> None:
    """Have values of the kinds that ``applies`` says looked at before cattrs structures them."""
    asked: list[Any] = []

    def hook(kind: Any) -> Callable[[Any, Any], Any]:
        asked.append(kind)  # so that cattrs finds its own hook for it
        structure = converter.get_structure_hook(kind, cache_result=False)
        asked.remove(kind)
        return lambda value, kind: structure(_exactly(value, what, *accepted), kind)

    converter.register_structure_hook_factory(lambda kind: kind not in asked and applies(kind), hook)


def _exactly(value: Any, what: str, *accepted: type) -> Any:
    if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in accepted):
        raise WrongContent(f"{what} expected, not {shown(value)}")
    return value


def _first_fault(error: BaseException) -> str:
    """The first of the faults, with the place where it is."""
    from cattrs import transform_error

    def words(fault: BaseException, kind: type | None) -> str:
        if isinstance(fault, KeyError):
            return "nothing"
        return str(fault) if isinstance(fault, WrongContent) else f"{type(fault).__name__}: {fault}"

    found = transform_error(error, path="", format_exception=words)
    return found[0].replace(" @ .", " at ").replace(" @ ", " at ").removesuffix(" at ")


# --- errors ----------------------------------------------------------------------------------------------


def _is_error(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, GgqError)


def _words(error: GgqError) -> dict[str, str]:
    return {"what": error.what, "why": error.why, "next_step": error.next_step}


def _error(value: Mapping[str, str]) -> GgqError:
    """Its words; of which class it was no file tells."""
    return GgqError(value["what"], value["why"], value["next_step"])


# --- dataclasses with marks, or a form of their own ------------------------------------------------------


def _marked(kind: Any, mark: type[T]) -> dict[str, T]:
    """The marks of a kind on a dataclass's fields, by the fields' names."""
    hints = get_type_hints(kind, include_extras=True)
    found = ((name, it) for name, hint in hints.items() for it in get_args(hint) if isinstance(it, mark))
    return dict(found)


def _is_special(kind: Any) -> bool:
    return dataclasses.is_dataclass(kind) and bool(
        kind in _FORMS or _marked(kind, Inlined) or _marked(kind, LeftOutIfDefault)
    )


def _writer(converter: Converter, kind: Any) -> Callable[[Any], dict[str, Any]]:
    from cattrs.gen import make_dict_unstructure_fn, override

    inlined = _marked(kind, Inlined)
    left_out = {name: override(omit_if_default=True) for name in _marked(kind, LeftOutIfDefault)}
    plain = make_dict_unstructure_fn(kind, converter, **left_out)  # type: ignore[arg-type]
    written = _FORMS.get(kind, _Form()).written

    def write(value: Any) -> dict[str, Any]:
        made = plain(value)
        for name in inlined:
            made |= made.pop(name) or {}
        return written(made)

    return write


def _reader(converter: Converter, kind: Any) -> Callable[[Any, Any], Any]:
    from cattrs.gen import make_dict_structure_fn

    inlined = _marked(kind, Inlined)
    plain = make_dict_structure_fn(kind, converter)
    form = _FORMS.get(kind, _Form()).read

    def read(value: Any, _: Any) -> Any:
        value = _exactly(form(value), "an object", dict)
        there = [name for name, mark in inlined.items() if mark.with_key is None or mark.with_key in value]
        return plain({**value, **dict.fromkeys(there, value)}, kind)

    return read

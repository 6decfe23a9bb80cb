"""Saved JSON and the dataclasses that wrote it: one converter for all that ggq writes down and reads again.

Nothing is coerced: a text in the place of a number is an error. A key that is not known is passed over, and
one that is missing takes the field's default, so that files of older and of newer versions stay readable.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_origin

from ggq.errors import GgqError, OutputProblem
from ggq.system.untrusted import shown

if TYPE_CHECKING:
    from cattrs import Converter

T = TypeVar("T")


class WrongContent(ValueError):
    """What was read is not of the class that was wanted; its text says where, and what is there."""


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
    # Of what holds others, cattrs would take whatever can be walked through: a text for a list of letters.
    _require(made, dataclasses.is_dataclass, "an object", dict)
    _require(made, lambda kind: get_origin(kind) in (dict, Mapping), "an object", dict)
    _require(made, lambda kind: get_origin(kind) in (tuple, list, Sequence), "a list", list, tuple)
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

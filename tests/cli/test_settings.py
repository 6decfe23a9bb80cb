"""Options of the command line that come from the fields of a dataclass."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import click
import pytest
from click.testing import CliRunner

from ggq.cli.settings import settings_options
from ggq.errors import UsageProblem
from ggq.settings import Option, filled


class Colour(StrEnum):
    RED = "red"
    GREEN = "green"


def _half(word: str) -> int:
    return int(word) // 2


@dataclass(frozen=True)
class Inner:
    depth: Annotated[int, Option("--depth", least=0, help="How deep.")] = 3
    untold: int = 7


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    colour: Annotated[Colour, Option("--colour", help="Which one.")] = Colour.RED
    sizes: Annotated[
        tuple[int, ...], Option("-c", "--sizes", aliases=("--old",), split=True, help="Some.")
    ] = ()
    halves: Annotated[int | None, Option("--twice", parse=_half, metavar="N", help="Twice a half.")] = None
    file: Annotated[Path | None, Option("--file", help="A file.")] = None
    loud: Annotated[bool, Option("--loud", help="Say it loud.")] = False


def _run(*arguments: str) -> Any:
    seen: list[Outer] = []

    @click.command()
    @settings_options(Outer)
    def command(settings: Outer) -> None:
        seen.append(settings)

    result = CliRunner().invoke(command, arguments)
    return seen[0] if seen else result.output


def test_without_options_the_settings_are_the_defaults() -> None:
    assert _run() == Outer()


def test_each_option_reaches_its_field() -> None:
    told = _run(
        "--depth", "5", "--colour", "GREEN", "-c", "1,2", "--old", "3", "--twice", "8", "--file", "a/b",
        "--loud",
    )  # fmt: skip
    assert told == Outer(Inner(5), Colour.GREEN, (1, 2, 3), 4, Path("a/b"), True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--depth", "-1"), "--depth"),
        (("--colour", "blue"), "'red', 'green'"),
        (("--twice", "x"), "'--twice'"),
        (("--sizes", "1,x"), "--sizes"),
    ],
)
def test_a_wrong_word_names_its_option(arguments: tuple[str, ...], words: str) -> None:
    assert words in _run(*arguments)


def test_the_help_shows_defaults_and_hides_aliases() -> None:
    text = " ".join(_run("--help").split())
    assert "[default: red]" in text and "[default: 3;" in text and "--sizes" in text
    assert "--old" not in text


def test_keywords_of_the_api_fill_groups_and_words_become_what_they_name() -> None:
    made = filled(Outer, None, {"depth": 9, "colour": "Green", "sizes": 4, "file": "x"})
    assert made == Outer(Inner(9), Colour.GREEN, (4,), None, Path("x"))
    assert filled(Outer, made, {"loud": True}).inner.depth == 9


def test_keywords_that_nothing_has_are_refused() -> None:
    with pytest.raises(TypeError, match="'dept'"):
        filled(Outer, None, {"dept": 1})
    with pytest.raises(UsageProblem, match="red, green"):
        filled(Outer, None, {"colour": "blue"})

"""Plain English where people read first: no sentence above 30 words in the README and in any help."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from prose import MOST_WORDS, sentences, too_long

from ggq.cli.main import cli

ROOT = Path(__file__).parents[1]


def commands(command: click.Command, *before: str) -> Iterator[tuple[str, click.Command]]:
    """A command and all below it, each with what is typed for it."""
    yield " ".join(before), command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from commands(below, *before, name)


COMMANDS = dict(commands(cli, "ggq"))


def prose(command: click.Command) -> Iterator[str]:
    """What a command says of itself and of its parameters, without its examples (after ``\\b``)."""
    for paragraph in (command.help or "").split("\n\n"):
        if not paragraph.lstrip().startswith("\b"):
            yield paragraph
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            yield parameter.help or ""


def test_sentences_are_counted() -> None:
    long = " ".join(["word"] * MOST_WORDS)
    assert too_long(f"{long}.") == []
    assert len(too_long(f"{long} more.")) == 1
    assert len(too_long(f"A short one. {long} (and more). Another short one.")) == 1
    assert too_long(f"- {long}\n- {long}") == []
    assert too_long(f"```\n{long} {long}\n```\nAfter it.") == []
    assert list(sentences("See [the page](https://example.org/a.b). It ends.")) == [
        "See the page.",
        "It ends.",
    ]


@pytest.mark.parametrize("typed", COMMANDS)
def test_help_has_short_sentences(typed: str) -> None:
    found = [it for part in prose(COMMANDS[typed]) for it in too_long(part)]
    assert found == [], "\n".join(found)


def test_the_readme_has_short_sentences() -> None:
    found = too_long((ROOT / "README.md").read_text(encoding="utf-8"))
    assert found == [], "\n".join(found)

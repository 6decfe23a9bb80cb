"""Every command explains itself, and the written reference is what the commands say today."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from ggq.cli.main import cli

ROOT = Path(__file__).parents[2]


def commands(group: click.Group, *before: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command with its words, those of groups too."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*before, name), command
        if isinstance(command, click.Group):
            yield from commands(command, *before, name)


COMMANDS = dict(commands(cli))
VERBS = {words: command for words, command in COMMANDS.items() if not isinstance(command, click.Group)}


def test_the_main_commands_are_there() -> None:
    assert {
        "bench", "convert", "convert-and-quantize", "doctor", "download", "inspect", "plan", "presets",
        "quantize", "run", "setup",
    } <= set(cli.list_commands(click.Context(cli)))  # fmt: skip


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_has_a_sentence_an_example_and_words_for_every_option(words: tuple[str, ...]) -> None:
    command = COMMANDS[words]
    shown = CliRunner().invoke(cli, [*words, "-h"])
    assert shown.exit_code == 0
    # `ggq bench all` is what `ggq bench` does without a word.
    typed = " ".join(word for word in words if word != "all")
    assert f"ggq {typed}" in (command.help or ""), "no example to copy"
    assert (command.help or "").split("\n")[0].endswith("."), "the first line is not a sentence"
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, f"{option.name} has no help"


def test_the_written_reference_is_current() -> None:
    generated = runpy.run_path(str(ROOT / "scripts" / "generate_cli_docs.py"))["render"]()
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == generated, "run `make docs`"


def test_an_unknown_command_is_met_with_the_nearest() -> None:
    result = CliRunner().invoke(cli, ["quantise"])
    assert result.exit_code == 2
    assert "Did you mean `ggq quantize`?" in result.stderr


def test_every_command_knows_json_and_quiet() -> None:
    for words, command in VERBS.items():
        options = {word for option in command.params for word in option.opts}
        assert {"--json", "-q", "-v"} <= options, words

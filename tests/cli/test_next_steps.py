"""What an error tells to type is there: every flag and every command that the text of an error names.

Read off the source: each text that is given to an error of ggq's family. A command in backticks is looked up
as it stands. A flag without a command must be one of a verb that can come to that module (by what modules
import, anywhere in them); in a module of the command line, one of that module's verb.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

import ggq
from ggq import errors
from ggq.cli.main import cli

HOUSE = Path(ggq.__file__).parent
FAMILY = {
    name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)
}
_FLAG = re.compile(r"(?<![\w-])--?[a-z][a-z0-9-]*(?![\w-])")
# What several verbs run alike: a flag that stands alone must be one of each of these.
_MAIN = ("convert-and-quantize", "quantize")
SHARED = {
    "ggq.quantization.imatrix": (*_MAIN, "imatrix"),
    "ggq.llamacpp.imatrix": (*_MAIN, "imatrix"),
    "ggq.quantization.recipe": _MAIN,
    "ggq.quantization.engine": _MAIN,
    "ggq.conversion.converter_errors": ("convert", "convert-and-quantize"),
    "ggq.conversion.verification": ("convert", "convert-and-quantize"),
    "ggq.hub.client": ("convert-and-quantize", "plan", "recommend", "download", "inspect"),
}
# Told only where it was given.
GIVEN = {("ggq.conversion.converter_errors", "--mmproj")}
# Where one of several flags is named, and the verb at hand has another of them.
ALTERNATIVES = ({"-o", "--output", "--outdir"}, {"--text", "--imatrix-text"})
_COMMAND = re.compile(r"`ggq( [^`]*)`")
_FOREIGN = re.compile(r"`(?!ggq )[^`]*`|\bllama-[\w-]+ [^.;]*")


@functools.cache
def commands() -> dict[str, click.Command]:
    """Every command by its words, ``bench speed`` too."""
    found = {}
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        found[name] = command
        if isinstance(command, click.Group):
            found |= {f"{name} {inner}": it for inner, it in command.commands.items()}
    return found


def flags(command: click.Command) -> set[str]:
    return {word for it in command.params for word in (*it.opts, *it.secondary_opts)} | {"--help", "-h"}


@dataclass(frozen=True)
class Told:
    module: str
    line: int
    text: str


def texts() -> Iterator[Told]:
    """The texts of errors: of a call of the family, and of a call that passes ``next_step``."""
    for file in sorted(HOUSE.rglob("*.py")):
        module = ".".join(["ggq", *file.relative_to(HOUSE).with_suffix("").parts])
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            named = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            for argument in [*node.args, *(it.value for it in node.keywords)]:
                if named in FAMILY or named == "failed":
                    yield Told(module, node.lineno, _joined(argument))


def _joined(node: ast.expr) -> str:
    """The text of an expression, its variable parts as ``{}``."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_joined(part) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return "{}"
    if isinstance(node, ast.IfExp):
        return f"{_joined(node.body)} | {_joined(node.orelse)}"
    if isinstance(node, ast.BinOp):
        return _joined(node.left) + _joined(node.right)
    return ""


@functools.cache
def imports(module: str) -> frozenset[str]:
    path = HOUSE.joinpath(*module.split(".")[1:])
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not file.is_file():
        return frozenset()
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ggq":
            found.add(node.module or "")
            found |= {f"{node.module}.{it.name}" for it in node.names}
        elif isinstance(node, ast.Constant) and str(node.value).startswith("ggq."):
            found.add(str(node.value))  # a child process is started by its module's name
    return frozenset(found)


@functools.cache
def reached(verb: str) -> frozenset[str]:
    """The modules that a verb can come to."""
    words = verb.replace("-", "_").split()
    known: set[str] = set()
    start = ".".join(["ggq.cli", *words])
    waiting = [start, "ggq.cli.group", *(["ggq.cli.bench.all"] if verb in ("bench", "bench all") else [])]
    while waiting:
        module = waiting.pop()
        if module in known or (module.startswith("ggq.cli.main")):
            continue
        known.add(module)
        waiting += imports(module)
    return frozenset(known)


def wrong(told: Told) -> list[str]:
    """What a text names that is not there."""
    found = []
    for words in _COMMAND.findall(told.text):
        named = next((name for name in sorted(commands(), key=len, reverse=True)
                      if f"{words} ".startswith(f" {name} ")), None)  # fmt: skip
        if named is None:
            if not words.strip().startswith(("-", "{}")):
                found.append(f"ggq{words}")
            continue
        found += [
            f"ggq{words}: {flag}" for flag in _FLAG.findall(words) if flag not in flags(commands()[named])
        ]
    bare = _FOREIGN.sub("", _COMMAND.sub("", told.text))
    verbs = [verb for verb in commands() if told.module in reached(verb)]
    for flag in _FLAG.findall(bare):
        alike = next((set(it) for it in ALTERNATIVES if flag in it), {flag})
        having = [verb for verb in verbs if alike & flags(commands()[verb])]
        if not having:
            found.append(f"{flag}, of none of {', '.join(verbs)}")
        lacking = [verb for verb in SHARED.get(told.module, ()) if verb not in having]
        if having and lacking and (told.module, flag) not in GIVEN:
            found.append(f"{flag}, which {', '.join(lacking)} has not")
    return [f"{told.module}:{told.line}: {it}" for it in found]


def test_every_flag_and_command_is_there() -> None:
    assert not [it for told in texts() for it in wrong(told)]


def test_there_are_texts_with_commands_and_flags() -> None:
    """Else the test above would look at nothing."""
    every = list(texts())
    assert len(every) > 300
    assert sum(bool(_COMMAND.search(it.text)) for it in every) > 10
    assert sum(bool(_FLAG.search(_FOREIGN.sub("", it.text))) for it in every) > 20


@pytest.mark.parametrize(
    "text",
    ["Run `ggq doktor`.", "See `ggq plan --nothing`.", "Give --no-such-flag."],
)
def test_it_can_fail(text: str) -> None:
    assert wrong(Told("ggq.system.files", 1, text))


def test_a_flag_of_one_of_the_verbs_alone_is_told_with_its_verb() -> None:
    assert wrong(Told("ggq.quantization.imatrix", 1, "Give a larger one with -c/--ctx."))
    assert not wrong(Told("ggq.quantization.imatrix", 1, "Make it by `ggq imatrix -c` with a larger one."))


def test_a_command_line_module_names_its_own_flags() -> None:
    assert wrong(Told("ggq.cli.run", 1, "Give --outdir.")) and not wrong(
        Told("ggq.cli.run", 1, "Fewer with -n.")
    )

"""What a terminal sees of strangers' texts: no control characters, no turned writing; JSON stays exact."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

import ggq
from ggq.cli.output import Output, clean
from ggq.errors import GgqError
from ggq.progress import Notice

HOSTILE = "a\x1b[31mred\x1b]0;title\x07 \x9b2J \x08\x7f\r over \u202eback\u2066 \u2028 \u200f end"


def test_nothing_of_it_reaches_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    out = Output()
    out.text(HOSTILE)
    out.info(HOSTILE)
    out.warning(HOSTILE)
    out.echo(HOSTILE)
    out.paragraph(HOSTILE)
    out.fields([(HOSTILE, HOSTILE)])
    out.table(["name"], [[HOSTILE]])
    out.error(GgqError(HOSTILE, HOSTILE, HOSTILE))
    with out.progress() as listener:
        listener(Notice(HOSTILE, "warning"))
    seen = "".join(capfd.readouterr())
    styles = seen.replace("\x1b[0m", "").replace("\x1b[1m", "")
    assert not [
        c
        for c in styles
        if c != "\n" and (ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or c in "\u202e\u2066\u2028\u200f")
    ]
    assert "\\x1b[31mred" in seen and "\\u202eback" in seen


def test_what_is_no_control_stays() -> None:
    text = "Ġé 안녕 👩\u200d👩 \t tab\nline"
    assert clean(text) == text and clean("a\r\nb") == "a\nb"


def test_json_is_exact_and_harmless(capfd: pytest.CaptureFixture[str]) -> None:
    Output(json=True).result({"text": HOSTILE})
    printed = capfd.readouterr().out
    assert json.loads(printed) == {"text": HOSTILE}
    assert "\x1b" not in printed and "\x9b" not in printed and "\u202e" not in printed


def test_a_wrong_argument_is_cleaned_too(capfd: pytest.CaptureFixture[str]) -> None:
    from ggq.cli.main import cli

    with pytest.raises(SystemExit):
        cli(["plan", "--bo\x1b[2Jgus"], prog_name="ggq")
    assert "\x1b" not in "".join(capfd.readouterr())


def test_only_one_place_writes() -> None:
    writing = [
        f"{file.name}:{node.lineno}"
        for file in sorted((Path(ggq.__file__).parent / "cli").rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("click.echo", "click.secho")
    ]
    assert len(writing) == 1 and writing[0].startswith("output.py"), writing

"""Chat templates in Go's language say what the model's own say: tried with jinja2 and with Go itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2.sandbox
import pytest

from ggq.errors import CannotServe
from ggq.serving.export.go_template import Render, pieces

# As published with models of these names, without what is for tools; and some beyond pieces.
_DATA = json.loads((Path(__file__).parents[1] / "data" / "chat_templates.json").read_text(encoding="utf-8"))
TEMPLATES, BEYOND = _DATA["pieces"], _DATA["more"]
CONVERSATIONS: list[list[Mapping[str, str]]] = [
    [{"role": "user", "content": "Hi {{ .System }} <b>"}],
    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."},
     {"role": "user", "content": "Bye"}],
    [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"},
     {"role": "user", "content": "3"}, {"role": "assistant", "content": "4"},
     {"role": "user", "content": "5"}],
]  # fmt: skip
SYSTEM = {"role": "system", "content": "You are a cat.\nMew."}


def renderer(template: str) -> Render:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)

    def refuse(words: str) -> None:
        raise CannotServe(words)

    parsed = environment.from_string(template)

    def render(messages: Sequence[Mapping[str, str]]) -> str:
        return parsed.render(
            messages=messages, add_generation_prompt=True, bos_token="<s>", eos_token="</s>",
            raise_exception=refuse,
        )  # fmt: skip

    def folded(messages: Sequence[Mapping[str, str]]) -> str:
        """A system prompt that is refused becomes a part of the first question, as in `ggq chat`."""
        try:
            return render(messages)
        except CannotServe:
            first, second, *rest = messages
            return render([{"role": "user", "content": f"{first['content']}\n\n{second['content']}"}, *rest])

    return folded


@pytest.fixture(scope="module")
def go(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that runs templates with Go's own library."""
    compiler = shutil.which("go")
    if compiler is None:
        pytest.skip("this system has no Go")
    program = tmp_path_factory.mktemp("go") / "gotemplate"
    source = Path(__file__).parents[1] / "helpers" / "gotemplate.go"
    cache = tmp_path_factory.mktemp("go-cache")
    subprocess.run(
        [compiler, "build", "-o", program, source], check=True, timeout=300,
        env={**os.environ, "GOCACHE": str(cache), "GOFLAGS": "", "CGO_ENABLED": "0"},
    )  # fmt: skip
    return program


def executed(go: Path, template: str, messages: Sequence[Mapping[str, str]]) -> str:
    asked: dict[str, Any] = {
        "Template": template,
        "System": "".join(it["content"] for it in messages if it["role"] == "system"),
        "Messages": [{"Role": it["role"], "Content": it["content"]} for it in messages],
    }
    done = subprocess.run([go], input=json.dumps(asked), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("with_system", [False, True], ids=["plain", "system"])
def test_the_pieces_say_what_the_template_says(name: str, with_system: bool) -> None:
    render = renderer(TEMPLATES[name])
    found = pieces(render, "<s>")
    assert found is not None
    for talk in CONVERSATIONS:
        messages = [SYSTEM, *talk] if with_system else talk
        assert found.render(messages) == render(messages).removeprefix("<s>")


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("with_system", [False, True], ids=["plain", "system"])
def test_go_itself_says_the_same(go: Path, name: str, with_system: bool) -> None:
    render = renderer(TEMPLATES[name])
    found = pieces(render, "<s>")
    assert found is not None
    for talk in CONVERSATIONS:
        messages = [SYSTEM, *talk] if with_system else talk
        assert executed(go, found.go_template(), messages) == render(messages).removeprefix("<s>")


@pytest.mark.parametrize("name", BEYOND)
def test_what_pieces_cannot_say_has_none(name: str) -> None:
    assert pieces(renderer(BEYOND[name])) is None


def test_chatml_in_go() -> None:
    found = pieces(renderer(TEMPLATES["chatml"]))
    assert found is not None
    assert found.go_template() == (
        '{{ range $i, $m := .Messages }}{{ if eq $m.Role "system" }}<|im_start|>system\n'
        '{{ $m.Content }}<|im_end|>\n{{ end }}{{ if eq $m.Role "user" }}<|im_start|>user\n'
        "{{ $m.Content }}<|im_end|>\n<|im_start|>assistant\n{{ end }}"
        '{{ if eq $m.Role "assistant" }}{{ $m.Content }}<|im_end|>\n{{ end }}{{ end }}'
    )

"""A chat template is compared with transformers' rendering at conversion; a broken one is told there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import checkpoints
import pytest

from ggq.conversion import chat_templates as templates
from ggq.llamacpp.chat_template import Engine
from ggq.llamacpp.toolchain import Toolchain

ROLES = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{{ m.content }}{% endfor %}"
)
MARKED = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
DATED = "{{ strftime_now('%Y') }}" + ROLES
TOOLS = "{{ tools | tojson if tools else '' }}" + ROLES
ENDLESS = "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}" + ROLES


@pytest.fixture
def compared(toolchain: Toolchain, tmp_path: Path) -> Any:
    """What a folder with a template is told, where the GGUF has the same one or another."""
    try:
        Engine(toolchain.lib_dir)
    except OSError:
        pytest.skip("this llama.cpp was built before libggq-template: `ggq setup` builds it")

    def of(template: str, other: str | None = None) -> dict[str, Any]:
        checkpoints.write_json(tmp_path / "tokenizer_config.json", {"chat_template": template})
        return templates.compare(tmp_path, other or template, None, toolchain.lib_dir)

    return of


@pytest.mark.tool
@pytest.mark.parametrize(
    ("template", "tried"), [(ROLES, 2), (NO_SYSTEM, 1), (MARKED, 2), (DATED, 2), (TOOLS, 3)]
)
def test_templates_that_agree(compared: Any, template: str, tried: int) -> None:
    assert compared(template) == {"tried": tried, "agree": tried, "why_not": "", "remarks": []}


@pytest.mark.tool
def test_a_broken_template_is_told(compared: Any) -> None:
    found = compared("{% for m in messages %}{{ m.content }")
    assert found["agree"] == 0
    assert "cannot read the chat template" in found["remarks"][0] and "Expected" in found["remarks"][0]


@pytest.mark.tool
def test_a_broken_template_for_tools_is_told(compared: Any, toolchain: Toolchain, tmp_path: Path) -> None:
    """Also one that names no tools: a template of that name is taken for them whatever it holds."""
    compared(ROLES)
    broken = "{% if %}"
    named = [{"name": "default", "template": ROLES}, {"name": "tool_use", "template": broken}]
    checkpoints.write_json(tmp_path / "tokenizer_config.json", {"chat_template": named})
    found = templates.compare(tmp_path, ROLES, broken, toolchain.lib_dir)
    assert len(found["remarks"]) == 1 and "cannot read the chat template" in found["remarks"][0]


@pytest.mark.tool
def test_another_prompt_is_told_with_its_place(compared: Any) -> None:
    found = compared(ROLES, ROLES.replace("<|assistant|>", "<|model|>"))
    (first, _) = found["remarks"]
    assert found["agree"] == 0 and "'model|>'" in first and "'assistant|>'" in first


@pytest.mark.tool
def test_a_template_without_end_is_ended(compared: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "_SECONDS", 1)
    assert "not be compared" in compared(ENDLESS)["remarks"][0]


def test_a_build_without_the_library_is_told(tmp_path: Path) -> None:
    checkpoints.write_json(tmp_path / "tokenizer_config.json", {"chat_template": ROLES})
    assert "ggq setup" in templates.compare(tmp_path, ROLES, None, tmp_path)["why_not"]


def test_the_file_comes_before_the_settings(tmp_path: Path) -> None:
    """As in transformers; the converter has it the other way round, and needs the settings to be there."""
    (tmp_path / "chat_template.jinja").write_text("of the file")
    assert templates.find(tmp_path) == {"default": "of the file"}
    templates.settle(tmp_path)
    checkpoints.edit(tmp_path / "tokenizer_config.json", chat_template="of the settings")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("with tools")
    assert templates.find(tmp_path) == {"default": "of the file", "tool_use": "with tools"}
    templates.settle(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").unlink()
    assert templates.find(tmp_path) == {"default": "of the file", "tool_use": "with tools"}

"""What a person may name as a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from ggq.errors import UsageProblem
from ggq.model_ref import ModelRef, parse_reference


@pytest.mark.parametrize(
    ("text", "revision", "expected"),
    [
        ("Qwen/Qwen3-0.6B", None, ("Qwen/Qwen3-0.6B", None)),
        ("a/b", None, ("a/b", None)),
        ("org/name_1.5-x", None, ("org/name_1.5-x", None)),
        ("org/name@main", None, ("org/name", "main")),
        ("org/name@refs/pr/3", None, ("org/name", "refs/pr/3")),
        ("org/name@v1.0", "v1.0", ("org/name", "v1.0")),
        ("org/name", "01234567" * 5, ("org/name", "01234567" * 5)),
    ],
)  # fmt: skip
def test_hub_names(text: str, revision: str | None, expected: tuple[str, str | None]) -> None:
    assert parse_reference(text, revision) == ModelRef("hub", *expected)


def test_what_exists_here_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "model.GGUF").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_reference("org/name") == ModelRef("folder", path=Path("org/name"))
    assert parse_reference("org/name/") == ModelRef("folder", path=Path("org/name"))
    assert parse_reference("~/org/name") == ModelRef("folder", path=tmp_path / "org/name")
    assert parse_reference("model.GGUF") == ModelRef("gguf", path=Path("model.GGUF"))
    assert parse_reference(".") == ModelRef("folder", path=Path())
    assert parse_reference("org/other").kind == "hub"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("./missing", "no file or folder ./missing"),
        ("/missing/deeply", "no file or folder /missing/deeply"),
        ("~nobody-has-this-name/model", "no file or folder ~nobody"),
        ("missing.gguf", "no file or folder missing.gguf"),
        ("org/repo/file.gguf", "no file or folder"),
        ("some/folder/here", "no file or folder some/folder/here"),
        ("Qwen3-8B", "org/Qwen3-8B"),
        ("", "org/name"),
        ("org/", "org/name"),
        ("org/na me", "org/name"),
        ("org/na--me", "org/name"),
        ("org/.hidden", "org/name"),
        ("org/name.git", "org/name"),
        ("org/naïve", "org/name"),
        ("x" * 5000, "org/"),
        ("org/na\0me", "org/name"),
        ("https://hub.example/Qwen/Qwen3-0.6B/tree/main", "Write Qwen/Qwen3-0.6B."),
        ("hf://Qwen/Qwen3-0.6B", "Write Qwen/Qwen3-0.6B."),
        ("org/name@", "'' cannot be a revision"),
        ("org/name@../../etc", "cannot be a revision"),
        ("org/name@-x", "cannot be a revision"),
        ("org/name@a b", "cannot be a revision"),
    ],
)
def test_what_cannot_be_read(text: str, said: str) -> None:
    with pytest.raises(UsageProblem) as caught:
        parse_reference(text)
    assert said in str(caught.value)
    assert caught.value.next_step


def test_revisions_that_contradict_or_have_no_place(tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match="Two revisions"):
        parse_reference("org/name@main", "v1")
    with pytest.raises(UsageProblem, match="Leave --revision out"):
        parse_reference(str(tmp_path), "main")


def test_a_file_that_is_no_gguf_names_its_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    with pytest.raises(UsageProblem) as caught:
        parse_reference(str(tmp_path / "config.json"))
    assert str(tmp_path) in caught.value.next_step


def test_a_reference_prints_as_it_is_typed() -> None:
    for text in ("org/name", "org/name@v1"):
        assert str(parse_reference(text)) == text
    assert str(ModelRef("gguf", path=Path("x.gguf"))) == "x.gguf"

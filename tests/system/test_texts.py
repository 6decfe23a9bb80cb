"""Texts as models read them: marks, Windows' line ends, other encodings, and what is refused in words."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from ggq.errors import CannotServe, SourceChanged
from ggq.system import encodings, texts

PLAIN = "Once upon a time,\nthere was a lamb.\n\n안녕하세요, café.\n"
KOREAN = "안녕하세요 오늘은 날씨가 좋습니다.\n개인정보 보호법에 따라 처리합니다.\n"
JAPANESE = "これは日本語の文章です。今日は天気がいいですね。\n"
SIMPLIFIED = "这是一个中文的句子。我们在中国有很多的人，他们不是来自上海的。\n"
TRADITIONAL = "這是一個中文的句子。我們在中國有很多的人，他們不是來自上海的。\n"
RUSSIAN = "Привет, это обычный русский текст о погоде и природе.\n"
WINDOWS = PLAIN.replace("\n", "\r\n")


@pytest.fixture(autouse=True, params=[1 << 20, 5])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole files at once, and so few bytes that characters and line ends lie across the blocks."""
    monkeypatch.setattr(texts, "_BLOCK", request.param)


@pytest.mark.parametrize(
    ("content", "remark"),
    [
        (PLAIN.encode(), ""),
        (PLAIN.encode("utf-8-sig"), "byte order mark"),
        (WINDOWS.encode(), "4 line ends of Windows"),
        (WINDOWS.replace("\r", "\r\r").encode(), "4 line ends of Windows"),
        (PLAIN.encode("utf-16"), "UTF-16"),
        (b"\xfe\xff" + PLAIN.encode("utf-16-be"), "UTF-16BE"),
        (WINDOWS.encode("utf-16"), "4 line ends of Windows"),
        (PLAIN.encode("utf-32"), "UTF-32"),
    ],
)
def test_one_text_is_read_the_same_however_it_was_written(
    tmp_path: Path, content: bytes, remark: str
) -> None:
    file = tmp_path / "a text.txt"
    file.write_bytes(content)
    text = texts.read(file)
    assert text.sha256 == hashlib.sha256(PLAIN.encode()).hexdigest()
    assert remark in text.remark and bool(text.remark) == bool(remark)
    assert text.file_bytes == len(content)
    placed = texts.place(text, tmp_path / "work")
    assert placed.name == file.name and placed.read_bytes() == PLAIN.encode()
    texts.unchanged(text)
    file.write_bytes(content + "more".encode("utf-16-le"))
    with pytest.raises(SourceChanged):
        texts.unchanged(text)


def test_a_lone_carriage_return_and_a_backslash_are_letters(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes(rb"one\ntwo\tthree" + b"\rfour\r")
    text = texts.read(file)
    assert (text.remark, text.file_sha256) == ("", "")
    assert texts.place(text, tmp_path / "work").read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (KOREAN.encode("cp949"), "CP949"),
        (("# English first\n" * 50 + KOREAN).encode("euc-kr"), "CP949"),
        (JAPANESE.encode("cp932"), "CP932"),
        (JAPANESE.encode("euc-jp"), "EUC-JP"),
        (SIMPLIFIED.encode("gbk"), "GB18030"),
        (TRADITIONAL.encode("big5"), "BIG5"),
        (RUSSIAN.encode("cp1251"), "CP1251"),
        (RUSSIAN.encode("koi8-r"), "KOI8-R"),
        (KOREAN.encode("utf-16-le"), "UTF-16LE"),
        (JAPANESE.encode("utf-16-be"), "UTF-16BE"),
    ],
)
def test_another_encoding_is_named_with_the_command_that_converts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, name: str
) -> None:
    monkeypatch.setattr(texts, "_BLOCK", 1 << 20)
    file = tmp_path / "a text.txt"
    file.write_bytes(content)
    with pytest.raises(CannotServe) as caught:
        texts.read(file)
    assert "is not UTF-8" in caught.value.what and name in caught.value.why
    command = caught.value.next_step.split("`")[1]
    assert command.startswith(f"iconv -f {name} -t UTF-8 ")
    if shutil.which("iconv"):
        subprocess.run(command, shell=True, check=True, cwd=tmp_path)
        assert (
            texts.read(tmp_path / "utf8.txt").sha256 == hashlib.sha256(content_of(content, name)).hexdigest()
        )


def content_of(content: bytes, name: str) -> bytes:
    return content.decode(name).encode()


def test_a_guess_that_is_none_says_so() -> None:
    assert encodings.likely("Müller hört über die Straße.".encode("cp1252")).sure is False


def test_utf8_that_is_cut_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "_BLOCK", 1 << 20)
    file = tmp_path / "text.txt"
    file.write_bytes(KOREAN.encode()[:-3])
    with pytest.raises(CannotServe, match="truncated or corrupt"):
        texts.read(file)


@pytest.mark.parametrize(
    "content", [b"GGUF\x03\0\0\0\x12\0\0\0" * 20, b"\xff\xfe\0\0\0\0", b"\xff\xfea\0\0\0"]
)
def test_what_is_no_text(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes(content)
    with pytest.raises(CannotServe, match=r"not a text|corrupt|no text"):
        texts.read(file)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CannotServe, match="cannot be read"):
        texts.read(tmp_path / "pipe")

"""Small files of strangers: bounds hold before memory is taken, and every fault is told in words."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path

import pytest

from ggq.checkpoint import files as checkpoint_files
from ggq.errors import CheckpointProblem
from ggq.system import untrusted
from ggq.system.untrusted import Bounds, Unsound

SMALL = Bounds(1 << 20, 1 << 20)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b'\xef\xbb\xbf{"a": 1}', "byte order mark"),
        ('{"a": 1}'.encode("utf-16"), "UTF-16"),
        ('{"a": 1}'.encode("utf-16-le"), "UTF-16"),
        ('{"a": 1}'.encode("utf-32"), "UTF-32"),
        (b'{"a": "\xe9"}', "0xE9"),
        (b'{"a": 1', "not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "thousands of digits"),
        (b'{"a": ' + b"9" * 100 + b"}", "digits"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b'{"a\\udfff": 1}', "surrogate"),
        (b'{"a":' * 900 + b"1" + b"}" * 900, "nested"),
        (b"[" * 10_000, "nested"),
        (b"[" + b"{}," * 100_000 + b"{}]", "memory"),
        (b'{"a": "' + b"x" * (1 << 20) + b'"}', "bytes long"),
    ],
    ids=range(16),
)
def test_an_unsound_text_is_told_in_words(raw: bytes, words: str) -> None:
    with pytest.raises(Unsound, match=words):
        untrusted.parse(raw, SMALL)


def test_what_is_sound_is_read() -> None:
    text = '{"rope": {"high": Infinity}, "none": 1000000000000000019884624838656, "a": "안녕 \\ud83d\\ude00"}'
    assert untrusted.parse(text.encode()) == json.loads(text)


def test_keys_may_have_to_be_unique() -> None:
    assert untrusted.parse(b'{"a": 1, "a": 2}') == {"a": 2}
    with pytest.raises(Unsound, match="'a' is there twice"):
        untrusted.parse(b'{"a": 1, "a": 2}', unique_keys=True)


@pytest.mark.parametrize(
    "unit", [b"{},", b"[],", b'{"a":1},', b"[0],", b'"ab",', b"1000,", b'{"a":{}},', b"1.5,"]
)
def test_the_reckoned_memory_bounds_the_real_one(unit: bytes) -> None:
    """Of a text at the very bound: its values, without the text itself."""
    cost = sum(each * unit.count(mark) for mark, each in untrusted._COSTS)
    text = (b"[" + unit * ((SMALL.memory_bytes - 64) // cost)).rstrip(b",") + b"]"
    tracemalloc.start()
    try:
        value = untrusted.parse(text, SMALL)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert value and taken < 1.35 * SMALL.memory_bytes


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    device = tmp_path / "device"
    device.symlink_to("/dev/zero")
    for file, word in ((pipe, "pipe"), (device, "device")):
        with pytest.raises(OSError, match=word):
            untrusted.open_regular(file)
    with pytest.raises(IsADirectoryError):
        untrusted.open_regular(tmp_path)
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    assert untrusted.read_bytes(tmp_path / "link", 7) == b"content"
    with pytest.raises(Unsound, match="7 bytes long; up to 6"):
        untrusted.read_bytes(tmp_path / "link", 6)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("preprocessor_config.json", b"", "empty"),
        ("processor_config.json", b"[1]", "not an object"),
        ("processor_config.json", b'{"a": "\xff"}', "UTF-8"),
        ("generation_config.json", b"[" + b"{}," * (8 << 20) + b"{}]", "up to"),
        ("special_tokens_map.json", b"{", "not JSON"),
        ("modules.json", b"3", "neither"),
        ("tokenizer.json", b"{}" + b" " * 99 + b"x", "whole"),
        ("tokenizer.json", b"[" + b"{}," * (5 << 20) + b"{}]", "memory"),
        ("merges.txt", b"\xff\xfea", "UTF-8"),
        ("tokenizer.model", b"version https://git-lfs", "Git LFS"),
    ],
)
def test_every_file_that_is_read_later_is_looked_over(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointProblem, match=words) as raised:
        checkpoint_files.check(tmp_path, [name])
    assert name in raised.value.what


def test_files_of_others_are_not_looked_at(tmp_path: Path) -> None:
    (tmp_path / "all_results.json").write_bytes(b"NaN, whatever")
    checkpoint_files.check(tmp_path, ["all_results.json"])


def test_parts_in_folders_are_looked_over(tmp_path: Path) -> None:
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text("[1]")
    with pytest.raises(CheckpointProblem, match="1_Pooling"):
        checkpoint_files.check(tmp_path, [])

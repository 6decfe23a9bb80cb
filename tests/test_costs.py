"""Small inputs that would cost much: each is told in words, for little memory in the whole process tree."""

from __future__ import annotations

import json
import os
import shutil
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import costs
import pytest

MOST_BYTES = 500_000_000
Spoil = Callable[[Path], None]


def config(**keys: object) -> Spoil:
    def spoil(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | keys))

    return spoil


def content(name: str, start: bytes, unit: bytes = b"", count: int = 0, end: bytes = b"") -> Spoil:
    return lambda folder: void((folder / name).write_bytes(start + unit * count + end))


def void(_: object) -> None:
    pass


def safetensors(text: bytes) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(64))

    return spoil


def a_device(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/dev/zero")


def a_pipe(name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return spoil


def a_bomb(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with (
        zipfile.ZipFile(folder / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("archive/data.pkl", "w", force_zip64=True) as member,
    ):
        for _ in range(300):
            member.write(bytes(1 << 20))


CASES: dict[str, tuple[Spoil, str]] = {
    "layers": (config(num_hidden_layers=50_000_000), "num_hidden_layers"),
    "layers, 2^40": (config(num_hidden_layers=1 << 40), "num_hidden_layers"),
    "layers of a part": (config(text_config={"num_hidden_layers": 50_000_000}), "text_config"),
    "experts": (config(num_local_experts=1 << 30), "num_local_experts"),
    "tokens": (config(vocab_size=1 << 34), "vocab_size"),
    "config of objects": (content("config.json", b"[", b"{},", 21 << 20, b"{}]"), "config.json"),
    "config of 12 MB": (content("config.json", b'{"a":[', b"{},", 4_000_000, b"{}]}"), "memory"),
    "config, deep": (content("config.json", b"", b'{"a":', 900, b"1" + b"}" * 900), "nested"),
    "tokenizer's settings": (content("tokenizer_config.json", b"[", b"{},", 21 << 20, b"{}]"), "bytes long"),
    "preprocessor": (content("preprocessor_config.json", b"[", b"{},", 21 << 20, b"{}]"), "bytes long"),
    "an empty processor": (content("processor_config.json", b""), "empty"),
    "index": (content("model.safetensors.index.json", b"[", b"{},", 10 << 20, b"{}]"), "memory"),
    "header of lists": (safetensors(b'{"a":[' + b"[]," * 10_000_000 + b"[]]}"), "memory"),
    "a long name": (safetensors(b'{"' + b"x" * 70_000 + b'":{"dtype":"F32"}}'), "70,000 characters"),
    "a zip bomb": (a_bomb, "packed"),
    "a device": (a_device, "device"),
    "a pipe for the config": (a_pipe("config.json"), "pipe"),
    "a pipe for the tokenizer": (a_pipe("tokenizer.model"), "pipe"),
    "a pipe for the weights": (a_pipe("model.safetensors"), "pipe"),
}


@pytest.mark.tool
@pytest.mark.parametrize("name", CASES)
def test_a_small_input_costs_little(example: Path, tmp_path: Path, name: str) -> None:
    spoil, words = CASES[name]
    folder = Path(shutil.copytree(example, tmp_path / "model"))
    spoil(folder)
    command = [sys.executable, "-m", "ggq", "plan", str(folder), "--no-speed"]
    done = costs.measure(command, timeout=60)
    said = " ".join(done.output.split())
    assert done.returncode in (1, 2), said
    assert words in said and "Traceback" not in said and "does not know" not in said
    assert len(said) < 2000
    assert done.peak_bytes < MOST_BYTES


@pytest.mark.parametrize("start", ["---", "---\nlicense: x"])
def test_a_model_card_of_empty_lines(example: Path, tmp_path: Path, start: str) -> None:
    folder = Path(shutil.copytree(example, tmp_path / "model"))
    (folder / "README.md").write_text(start + "\n" * 1_000_000)
    done = costs.measure([sys.executable, "-m", "ggq", "inspect", str(folder)], timeout=60)
    assert done.returncode == 0 and done.peak_bytes < MOST_BYTES

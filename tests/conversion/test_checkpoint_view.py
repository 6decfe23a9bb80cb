"""What of a checkpoint folder a conversion sees, and that none of it is code."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
from pathlib import Path

import pytest

from benchmarks.common import convert_by_hand
from ggq.checkpoint import checkpoint
from ggq.checkpoint import files as checkpoint_files
from ggq.conversion import checkpoint_view, convert
from ggq.errors import CheckpointProblem
from ggq.gguf import file as gguf_file
from ggq.llamacpp.toolchain import Toolchain
from ggq.session import Session


@pytest.fixture
def folder(example: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(example, tmp_path / "model"))


def seen(folder: Path, work: Path) -> Path:
    work.mkdir(exist_ok=True)
    return checkpoint_view.make(checkpoint.read(folder), work, None)


def names(made: Path) -> set[str]:
    return {str(file.relative_to(made)) for file in made.rglob("*")}


def test_only_known_kinds_of_files_are_in_it(folder: Path, tmp_path: Path) -> None:
    plain = names(seen(folder, tmp_path / "plain"))
    assert {"config.json", "model.safetensors", "tokenizer.model"} <= plain
    for name in (
        "a.py",
        "b.so",
        "c.pyd",
        "d.pth",
        "e.pyc",
        "f.pkl",
        "config.4.0.0.json",
        "adapter_config.json",
    ):
        (folder / name).write_text("{}")
    for inner in (
        "json/__init__.abi3.so",
        "custom_generate/generate.py",
        "1_Pooling/evil.py",
        "sub/config.json",
    ):
        (folder / inner).parent.mkdir(exist_ok=True)
        (folder / inner).write_text("x")
    os.mkfifo(folder / "vocab.txt.model")
    (folder / "zero.model").symlink_to("/dev/zero")
    (folder / "lost.model").symlink_to("nowhere")
    assert names(seen(folder, tmp_path / "hostile")) == plain


def test_what_the_converter_needs_of_folders_is_in_it(folder: Path, tmp_path: Path) -> None:
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ messages }}")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    made = seen(folder, tmp_path / "work")
    assert {"additional_chat_templates/tool_use.jinja", "1_Pooling/config.json"} <= names(made)
    assert (made / "1_Pooling").is_dir() and not (made / "1_Pooling").is_symlink()


@pytest.mark.parametrize("written", ["auto_map", "auto\\u005fmap", "\\u0061uto_map"])
def test_names_of_code_are_taken_out_however_they_are_written(
    folder: Path, tmp_path: Path, written: str
) -> None:
    entry = f'"{written}": {{"AutoConfig": "sub/evil.C"}}'
    (folder / "generation_config.json").write_text(f'{{"a": [{{"b": {{{entry}}}}}], {entry}, "top_k": 3}}')
    made = seen(folder, tmp_path / "work")
    assert json.loads((made / "generation_config.json").read_text()) == {"a": [{"b": {}}], "top_k": 3}


@pytest.mark.parametrize("key", checkpoint_view.CODE_KEYS)
def test_every_json_is_looked_through(folder: Path, tmp_path: Path, key: str) -> None:
    files = [file for file in checkpoint_view._SETTINGS if file != "modules.json"] + ["tokenizer_config.json"]
    for name in files:
        file = folder / name
        before = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps({**before, key: ["x"]}))
    made = seen(folder, tmp_path / "work")
    for name in files:
        assert key not in json.loads((made / name).read_text()), name


def test_a_token_of_that_name_stays(folder: Path, tmp_path: Path) -> None:
    (folder / "vocab.json").write_text('{"auto_map": 7, "b": 8}')
    made = seen(folder, tmp_path / "work")
    assert json.loads((made / "vocab.json").read_text()) == {"auto_map": 7, "b": 8}


def test_a_json_that_names_code_and_is_none_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "chat_template.json").write_text('{"auto_map": ' + "[" * 500 + "]" * 500 + "}")
    with pytest.raises(CheckpointProblem, match=r"chat_template\.json"):
        seen(folder, tmp_path / "work")


@pytest.mark.tool
def test_no_file_that_the_converter_reads_is_forgotten(toolchain: Toolchain) -> None:
    """Its own sources tell them: names that are joined to the model's folder."""
    not_ours = {
        "config.json",  # of a part
        "model.safetensors",  # weights go by the checkpoint's own list
        "model.safetensors.index.json",
        "mask_embedding.pt",
        "README.md",  # rewritten by ggq
        "params.json",  # --mistral-format
    }
    read = set[str]()
    for file in (toolchain.converter.parent / "conversion").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.BinOp)
                and isinstance(node.op, ast.Div)
                and isinstance(node.right, ast.Constant)
                and "dir_model" in ast.unparse(node.left)
            ):
                read.add(str(node.right.value))
    assert len(read) > 15
    folders = {name for name in read if not re.search(r"\.\w+$", name)}
    assert all(any(known.fullmatch(name) for known, _ in checkpoint_files.PARTS) for name in folders), folders
    assert {name for name in read - folders - not_ours if not checkpoint_view.is_wanted(name)} == set()


@pytest.mark.tool
def test_the_models_name_is_the_folders_all_the_same(
    toolchain: Toolchain, example: Path, tmp_path: Path
) -> None:
    """The header is what llama.cpp's converter makes by hand of a folder of that name."""
    folder = Path(shutil.copytree(example, tmp_path / "Some-0.5B-Instruct-v1.2"))
    assert convert_by_hand(toolchain, folder, tmp_path / "hand.gguf", "bf16").returncode == 0
    convert(folder, tmp_path / "ours.gguf", verify="off", session=Session(toolchain))
    by_hand, ours = (gguf_file.read(tmp_path / name).metadata for name in ("hand.gguf", "ours.gguf"))
    general = {
        key: value for key, value in ours.items() if key.startswith("general.") and "Array" not in repr(value)
    }
    assert general.pop("general.quantized_by")
    assert general == {key: by_hand.get(key) for key in general}
    assert general["general.basename"] == "Some" and general["general.version"] == "v1.2"
    assert set(by_hand) - set(ours) == set()

"""`ggq inspect` and `ggq presets` as a person and a program meet them."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import gguf
import numpy as np
import pytest
from click.testing import CliRunner, Result
from hubserver import HubServer
from safetensors.numpy import save_file

from ggq.cli.main import cli


def ggq(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "Some-rather-long-name-of-a-model-Instruct-v0.3-F16.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Some rather long name\x1b[31m of a model")
    writer.add_license("apache-2.0")
    writer.add_context_length(4096)
    writer.add_block_count(2)
    writer.add_rope_freq_base(float("nan"))
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b", "한글"])
    for name in ("token_embd", "blk.0.attn_q", "blk.1.attn_q", "blk.0.ffn_up_exps", "output"):
        writer.add_tensor(f"{name}.weight", np.ones((64, 256), dtype=np.float16))
    writer.add_tensor("output_norm.weight", np.ones(256, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "max_position_embeddings": 512}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    save_file({"lm_head.weight": np.ones((8, 4), dtype=np.float16)}, folder / "model.safetensors")
    return folder


def test_a_gguf(model: Path) -> None:
    result = ggq("inspect", model)
    assert result.exit_code == 0, result.output
    for words in (
        "llama, 2 layers",
        "82.2 k (82,176)",
        "F16, 16.05 bits/weight",
        "4,096 tokens",
        "apache-2.0",
    ):
        assert words in result.stdout
    assert re.search(r"attention +2 .*F16 ×2", result.stdout)
    assert "\x1b" not in result.stdout, "a header must not steer the terminal"


def test_a_gguf_for_programs(model: Path) -> None:
    found = json.loads(ggq("inspect", model, "--json").stdout)
    assert found["kind"] == "gguf" and found["files"] == [str(model)]
    assert found["parameter_count"] == 82_176 and found["file_bytes"] == model.stat().st_size
    assert found["vocabulary_size"] == 3 and found["has_chat_template"] is False
    assert found["metadata"]["tokenizer.ggml.tokens"] == {"array_count": 3}
    assert found["metadata"]["llama.rope.freq_base"] == "nan"
    groups = {group["group"]: group for group in found["tensor_groups"]}
    assert groups["attention"]["types"] == {"F16": 2} and groups["experts"]["data_bytes"] == 32_768


def test_a_checkpoint(folder: Path) -> None:
    result = ggq("inspect", folder)
    assert result.exit_code == 0, result.output
    for words in (
        "64 B of weights in 1 file",
        "safetensors, F16",
        "LlamaForCausalLM",
        "512 tokens",
        "output",
    ):
        assert words in result.stdout
    found = json.loads(ggq("inspect", folder, "--json").stdout)
    assert found["kind"] == "checkpoint" and found["parameter_count"] == 32
    assert found["weight_files"] == ["model.safetensors"] and found["tokenizer_files"] == ["tokenizer.json"]


@pytest.mark.hub
def test_a_repository(hub: HubServer) -> None:
    hub.add_repo("org/tiny", {"config.json": b"{}", "model.safetensors": b"w" * 5000})
    result = ggq("inspect", "org/tiny")
    assert result.exit_code == 0, result.output
    assert "kB in 2 files" in result.stdout and "model.safetensors" in result.stdout
    found = json.loads(ggq("inspect", "org/tiny", "--json").stdout)
    assert found["kind"] == "repository" and found["file_bytes"] == 5002
    assert not hub.requests("/resolve/"), "nothing is downloaded"


def test_problems_have_words(tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF" + b"\xff" * 40)
    for arguments, code, words in [
        (("inspect", bad), 1, "bad.gguf"),
        (("inspect", tmp_path), 1, "GGUF files, not a checkpoint"),
        (("inspect", tmp_path / "absent.gguf"), 2, "no file or folder"),
        (("presets", "q4km"), 2, "Did you mean Q4_K_M?"),
        (("presets", "--presets", tmp_path / "absent.toml"), 2, "cannot be read"),
    ]:
        result = ggq(*arguments)
        assert result.exit_code == code and words in result.stderr, result.output
        assert "Traceback" not in result.output and "next: " in result.stderr


def test_presets() -> None:
    result = ggq("presets")
    assert result.exit_code == 0
    for words in (
        "Q4_K_M",
        "0.0313",
        "0.812 i",
        "needed",
        "k-quants: Q2_K Q3_K_S",
        "not measured here",
        "Llama-3-8B",
    ):
        assert words in result.stdout
    assert "IQ2_XXS" not in ggq("presets", "K-QUANTS").stdout.split("k-quants:")[0]
    one = ggq("presets", "q4_k").stdout
    assert "4.8944" in one and "+0.1755" in one and "README" in one
    found = json.loads(ggq("presets", "legacy", "--json").stdout)
    assert [preset["name"] for preset in found["presets"]] == ["Q4_0", "Q4_1", "Q5_0", "Q5_1"]
    assert found["presets"][0]["published"]["mean_kld"] == 0.07194
    assert found["groups"]["legacy"] == ["Q4_0", "Q4_1", "Q5_0", "Q5_1"]


@pytest.mark.parametrize("columns", [60, 80])
@pytest.mark.parametrize("what", ["presets", "preset", "gguf", "checkpoint"])
def test_a_terminal_is_not_overrun(what: str, columns: int, model: Path, folder: Path) -> None:
    """On a real terminal of that width no line is longer, but for paths, which are left whole."""
    arguments = {
        "presets": ["presets"],
        "preset": ["presets", "q4_k_m"],
        "gguf": ["inspect", model.name],
        "checkpoint": ["inspect", folder.name],
    }[what]
    near, far = pty.openpty()
    fcntl.ioctl(far, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm"}
    environment.pop("COLUMNS", None)
    child = subprocess.Popen(
        [sys.executable, "-m", "ggq", *arguments], stdout=far, stderr=far, cwd=model.parent, env=environment
    )
    os.close(far)
    shown = b""
    try:
        while block := os.read(near, 65536):
            shown += block
    except OSError:  # how Linux says that the terminal's other end was closed
        pass
    os.close(near)
    assert child.wait() == 0, shown.decode()
    lines = re.sub(r"\x1b\[[\d;]*m|\r", "", shown.decode()).splitlines()
    assert len(lines) > 8
    assert not [line for line in lines if len(line) > columns and "/" not in line and model.name not in line]

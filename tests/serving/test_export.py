"""What other programs are given: taken apart, and run where the program is here."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from ggq.cli.main import cli
from ggq.llamacpp import gguf_split
from ggq.llamacpp.server_endpoint import any_free_port
from ggq.llamacpp.toolchain import Toolchain

pytestmark = pytest.mark.tool
ODD = 'od$d % "näme".gguf'


def export(model: Path, target: str, *options: str | Path) -> Result:
    return CliRunner().invoke(cli, ["export", str(model), "--to", target, *map(str, options)])


@pytest.fixture
def model(chat_gguf: Path, tmp_path: Path) -> Path:
    """A copy, since links are made to it."""
    return Path(shutil.copy(chat_gguf, tmp_path))


@pytest.fixture
def shards(toolchain: Toolchain, chat_gguf: Path, larger_gguf: Path, tmp_path: Path) -> Path:
    """A split model, by its first shard."""
    (tmp_path / "split").mkdir()
    return gguf_split.split(toolchain, larger_gguf, tmp_path / "split" / "larger", 4_000_000)[0]


@pytest.fixture(scope="module")
def larger_gguf(toolchain: Toolchain, larger: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from benchmarks.common import convert_by_hand

    made = tmp_path_factory.mktemp("larger") / "larger-BF16.gguf"
    done = convert_by_hand(toolchain, larger, made, "bf16")
    if done.returncode:
        raise done.failed()
    return made


# --- Ollama ----------------------------------------------------------------------------------------------


def test_a_modelfile_says_how_it_is_run(model: Path, tmp_path: Path) -> None:
    done = export(model, "ollama", "-o", tmp_path / "out", "-c", 256)
    assert done.exit_code == 0, done.output
    text = (tmp_path / "out" / "Modelfile").read_text()
    assert f"\nFROM {model}\n" in text
    assert "\nPARAMETER num_ctx 256\n" in text
    assert re.search(r"^PARAMETER num_gpu 0$", text, re.MULTILINE)
    assert '\nPARAMETER stop "</s>"\n' in text
    template = re.search(r'^TEMPLATE """(.*?)"""$', text, re.MULTILINE | re.DOTALL)
    assert template is not None
    # What chat260K was taught, as its tokenizer_config.json has it.
    assert "User: {{ $m.Content }}\nAssistant:" in template[1]
    assert "ollama create chat260k-bf16 -f" in done.stdout


def test_shards_become_one_file_for_ollama(shards: Path, larger_gguf: Path, tmp_path: Path) -> None:
    import gguf

    done = export(shards, "ollama", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "FROM ./larger.gguf" in (tmp_path / "out" / "Modelfile").read_text()
    merged, whole = (gguf.GGUFReader(it).tensors for it in (tmp_path / "out" / "larger.gguf", larger_gguf))
    assert [(it.name, it.data.tobytes()) for it in merged] == [(it.name, it.data.tobytes()) for it in whole]
    made_at = (tmp_path / "out" / "larger.gguf").stat().st_mtime_ns
    assert export(shards, "ollama", "-o", tmp_path / "out").exit_code == 0
    assert (tmp_path / "out" / "larger.gguf").stat().st_mtime_ns == made_at, "it was merged again"


def test_ollama_is_told_to_take_it_in(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of that name writes down how it was called: Ollama itself is not here."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "ollama").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/called\n')
    (tools / "ollama").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    done = export(model, "ollama", "-o", tmp_path / "out", "--create")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "called").read_text() == f"create chat260k-bf16 -f {tmp_path}/out/Modelfile\n"
    assert "ollama create" not in done.stdout, "it is done already"


def test_without_ollama_create_is_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    done = export(model, "ollama", "-o", tmp_path / "out", "--create")
    assert done.exit_code == 2
    assert not (tmp_path / "out").exists()


# --- LM Studio -------------------------------------------------------------------------------------------


def test_lm_studio_gets_hard_links_in_its_folders(model: Path, shards: Path, tmp_path: Path) -> None:
    root = tmp_path / "models"
    assert export(model, "lm-studio", "-o", root, "--publisher", "me").exit_code == 0
    linked = root / "me" / "chat260K-BF16" / "chat260K-BF16.gguf"
    assert linked.samefile(model)
    assert not linked.is_symlink()
    assert export(shards, "lm-studio", "-o", root).exit_code == 0
    there = sorted((root / "ggq" / "larger").iterdir())
    assert [it.name for it in there] == [it.name for it in sorted(shards.parent.iterdir())]


def test_another_file_in_the_way_is_not_overwritten(model: Path, tmp_path: Path) -> None:
    taken = tmp_path / "models" / "ggq" / "chat260K-BF16" / "chat260K-BF16.gguf"
    taken.parent.mkdir(parents=True)
    taken.write_text("mine")
    done = export(model, "lm-studio", "-o", tmp_path / "models")
    assert done.exit_code == 1
    assert taken.read_text() == "mine"
    assert export(model, "lm-studio", "-o", tmp_path / "models", "--force").exit_code == 0
    assert taken.samefile(model)


# --- programs --------------------------------------------------------------------------------------------


def test_the_script_runs(model: Path, tmp_path: Path) -> None:
    done = export(model, "python", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    script = tmp_path / "out" / "chat260K-BF16.py"
    assert os.access(script, os.X_OK)
    ran = subprocess.run(
        [sys.executable, script, "My name is Ben."], capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip(), "it says nothing"


def answer(port: int, path: str, body: object | None = None) -> dict[str, object]:
    """What a server says; asked again while it starts."""
    data = None if body is None else json.dumps(body).encode()
    for _ in range(600):
        try:
            asked = urllib.request.Request(
                f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(asked, timeout=60) as response:
                found: dict[str, object] = json.load(response)
                return found
        except OSError:
            time.sleep(0.2)
    raise AssertionError("the server did not answer")


@pytest.mark.parametrize("target", ["llama-server", "systemd"])
def test_the_server_that_is_written_down_answers(model: Path, tmp_path: Path, target: str) -> None:
    port = any_free_port("127.0.0.1")
    done = export(model, target, "-o", tmp_path / "out", "--port", str(port))
    assert done.exit_code == 0, done.output
    if target == "llama-server":
        command = [str(tmp_path / "out" / "chat260K-BF16-server.sh")]
    else:
        unit = (tmp_path / "out" / "llama-chat260k-bf16.service").read_text()
        command = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)[0].split()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            assert answer(int(port or 0), "/health") == {"status": "ok"}
            said = answer(int(port or 0), "/completion", {"prompt": "User: Hi", "n_predict": 4})
            assert said["tokens_predicted"]
        finally:
            server.terminate()


def test_the_ini_is_what_the_router_reads(model: Path, tmp_path: Path) -> None:
    import configparser

    assert export(model, "llama-server", "-o", tmp_path / "out", "-c", 128).exit_code == 0
    ini = configparser.ConfigParser(default_section="*")
    ini.read_string("[*]\n" + (tmp_path / "out" / "chat260K-BF16.ini").read_text())
    assert ini["chat260K-BF16"]["model"] == str(model)
    assert ini["chat260K-BF16"]["c"] == "128"


def test_llamafile_gets_its_arguments_and_a_script(model: Path, tmp_path: Path) -> None:
    """Two small programs stand for zipalign and llamafile: the script's words are what is tried."""
    done = export(model, "llamafile", "-o", tmp_path / "out", "-c", 128)
    assert done.exit_code == 0, done.output
    lines = (tmp_path / "out" / ".args").read_text().splitlines()
    assert lines == ["-m", "chat260K-BF16.gguf", "-c", "128", "..."]
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "llamafile").write_text("program")
    (tools / "zipalign").write_text('#!/bin/sh\nshift\ntarget=$1; shift\ncat "$@" >> "$target"\n')
    for it in tools.iterdir():
        it.chmod(0o755)
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    made = subprocess.run(
        ["sh", tmp_path / "out" / "make-llamafile.sh"], env={**os.environ, "PATH": path}, timeout=60
    )
    assert made.returncode == 0
    joined = (tmp_path / "out" / "chat260K-BF16.llamafile").read_bytes()
    assert joined == b"program" + model.read_bytes() + (tmp_path / "out" / ".args").read_bytes()


# --- services --------------------------------------------------------------------------------------------


def test_systemd_accepts_the_unit_and_finds_it_hardened(model: Path, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("this system has no systemd")
    odd = model.with_name(ODD)
    model.rename(odd)
    done = export(odd, "systemd", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    (unit,) = (tmp_path / "out").glob("*.service")
    verified = subprocess.run([analyze, "verify", unit], capture_output=True, text=True, timeout=60)
    assert verified.returncode == 0, verified.stderr
    assert verified.stderr == ""
    secure = [analyze, "security", "--offline=yes", "--threshold=20", "--no-pager", unit]
    judged = subprocess.run(secure, capture_output=True, text=True, timeout=60)
    assert judged.returncode == 0, judged.stdout[-400:]
    # The odd name reaches the server as it is: systemd's own quoting undone by hand.
    (command,) = re.findall(r'^ExecStart=.* -m "((?:[^"\\]|\\.)*)"', unit.read_text(), re.MULTILINE)
    assert re.sub(r"\\(.)", r"\1", command).replace("%%", "%").replace("$$", "$") == str(odd)


def test_the_compose_file_mounts_the_model_read_only(model: Path, tmp_path: Path) -> None:
    assert export(model, "docker", "-o", tmp_path / "out", "--port", "9001", "-c", 128).exit_code == 0
    compose = yaml.safe_load((tmp_path / "out" / "compose.yaml").read_text())
    (service,) = compose["services"].values()
    assert service["volumes"][0]["source"] == str(model.parent)
    assert service["volumes"][0]["read_only"] is True
    assert service["ports"] == ["127.0.0.1:9001:8080"]
    assert service["command"][:2] == ["-m", f"/models/{model.name}"]
    assert service["command"][service["command"].index("-c") + 1] == "128"
    assert service["cap_drop"] == ["ALL"]
    assert "deploy" not in service, "there is no GPU"


@pytest.mark.parametrize("target", ["systemd", "docker"])
def test_a_service_is_not_opened_to_others_without_a_key(model: Path, tmp_path: Path, target: str) -> None:
    done = export(model, target, "-o", tmp_path / "out", "--host", "0.0.0.0")
    assert done.exit_code == 1
    assert "API key" in done.stderr
    assert not (tmp_path / "out").exists()


# --- all -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["ollama", "lm-studio", "python", "llama-server", "docker", "llamafile"])
def test_a_dry_run_writes_nothing(model: Path, tmp_path: Path, target: str) -> None:
    shown = export(model, target, "-o", tmp_path / "out", "--dry-run", "--json")
    assert shown.exit_code == 0, shown.output
    planned = json.loads(shown.stdout)["files"]
    assert planned
    assert not (tmp_path / "out").exists()
    made = export(model, target, "-o", tmp_path / "out", "--json")
    assert json.loads(made.stdout)["files"] == planned
    assert all(Path(it).exists() for it in planned)

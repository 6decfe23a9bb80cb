"""`ggq download` as a person runs it: a process of its own, the Hub by HF_ENDPOINT."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ctrl_c import heed_ctrl_c
from hubserver import HubServer
from outputs import arrived_bytes

from ggq.hub import cache_dir

pytestmark = pytest.mark.hub

CONTENT = {
    "config.json": b"{}",
    "tokenizer.json": b"[]",
    "model.safetensors": b"w" * 5000,
    "pytorch_model.bin": b"p" * 5000,
}
COMMAND = [sys.executable, "-m", "ggq"]


def ggq(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=120)


def test_a_download(hub: HubServer) -> None:
    repo = hub.add_repo("org/tiny", CONTENT)
    run = ggq("download", "org/tiny")
    assert run.returncode == 0, run.stderr
    commit = repo.refs["main"]
    assert f"org/tiny@{commit}" in run.stdout
    assert str(cache_dir() / "models--org--tiny" / "snapshots" / commit) in run.stdout
    assert run.stderr == "next: ggq convert org/tiny\n"


def test_what_comes_next_depends_on_what_came(hub: HubServer) -> None:
    hub.add_repo("org/tiny-GGUF", {"README.md": b"", "tiny Q4_K_M.gguf": b"GGUF", "tiny-Q8_0.gguf": b"GGUF"})
    run = ggq("download", "org/tiny-GGUF", "--include", "*Q4_K_M*")
    assert run.returncode == 0 and run.stderr.startswith("next: ggq run '")
    assert "tiny Q4_K_M.gguf' " in run.stderr
    hub.add_repo("org/tiny", CONTENT)
    again = ggq("download", "org/tiny@main;ls")
    assert again.returncode == 1
    offline = ggq("download", "org/tiny@v1", "--offline")
    assert "Run `ggq download org/tiny@v1` once with the network." in offline.stderr


def test_json_is_the_whole_of_stdout(hub: HubServer) -> None:
    hub.add_repo("org/tiny", CONTENT)
    run = ggq("download", "org/tiny", "--json", "--include", "*.bin", "--exclude", "*.safetensors")
    value = json.loads(run.stdout)
    assert [file["path"] for file in value["files"]] == ["config.json", "pytorch_model.bin", "tokenizer.json"]
    assert (value["downloaded_bytes"], value["cached_bytes"]) == (5004, 0)
    assert run.stderr == ""
    assert json.loads(ggq("download", "org/tiny", "--offline", "--json").stdout)["downloaded_bytes"] == 0


def test_a_dry_run_says_what_would_come(hub: HubServer) -> None:
    hub.add_repo("org/tiny", CONTENT)
    run = ggq("download", "org/tiny", "--dry-run")
    assert run.returncode == 0, run.stderr
    rows = [line.split() for line in run.stdout.splitlines()]
    assert ["model.safetensors", "5,000", "no"] in rows
    assert ["to", "download", "5.00", "kB"] in rows
    assert ["left", "out", "1", "files,", "5.00", "kB"] in rows
    assert "free disk" in run.stdout
    assert not cache_dir().exists()
    ggq("download", "org/tiny")
    value = json.loads(ggq("download", "org/tiny", "--dry-run", "--json").stdout)
    assert (value["needed_bytes"], value["cached_bytes"]) == (0, 5004)


def test_an_error_is_words_and_no_traceback(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_aTokenThatMustNotBeSeen")
    run = ggq("download", "org/tiny", "-vv")
    assert run.returncode == 1
    assert run.stdout == ""
    lines = run.stderr.splitlines()
    assert lines[0] == "error: The Hub does not accept this token."
    assert lines[-1].startswith("next: ")
    assert "hf_aToken" not in run.stderr and "Traceback" not in run.stderr


def test_ctrl_c_ends_at_once_and_keeps_what_came(hub: HubServer) -> None:
    hub.add_repo("org/tiny", {**CONTENT, "model.safetensors": b"w" * 1_000_000})
    hub.fault("model.safetensors", bytes_per_s=200_000)
    child = subprocess.Popen(
        [*COMMAND, "download", "org/tiny"], stderr=subprocess.PIPE, text=True, preexec_fn=heed_ctrl_c
    )
    try:
        while arrived_bytes(cache_dir()) <= 100_000:
            assert child.poll() is None
            time.sleep(0.02)
        child.send_signal(signal.SIGINT)
        said = child.communicate(timeout=60)[1]
    finally:
        child.kill()
    assert child.returncode == 130
    assert "the same command resumes" in said and "Traceback" not in said
    assert ggq("download", "org/tiny", "-q").returncode == 0
    assert max(hub.resumed_at("model.safetensors")) > 100_000


def test_wrong_usage_is_exit_2(hub: HubServer) -> None:
    run = ggq("download", "Qwen3-8B")
    assert run.returncode == 2
    assert "org/Qwen3-8B" in run.stderr


@pytest.mark.tool
def test_a_dry_run_of_a_conversion_is_exact_and_downloads_no_weights(
    hub: HubServer, example: Path, tmp_path: Path
) -> None:
    hub.add_repo("org/tiny", example)
    output = tmp_path / "tiny.gguf"
    command = ["convert", "org/tiny", "-o", str(output), "--json"]
    before = json.loads(ggq(*command, "--dry-run").stdout)
    weights = (example / "model.safetensors").stat().st_size
    assert not list(cache_dir().rglob("*.safetensors")) and hub.bytes_sent("model.safetensors") < weights / 10
    assert weights < before["download_bytes"] < weights + 1_000_000
    assert before["exact"] and not output.exists()
    made = json.loads(ggq(*command).stdout)
    assert (before["output"], before["file_bytes"]) == (str(output), made["file_bytes"])
    after = json.loads(ggq(*command, "--dry-run", "--force").stdout)
    assert after == {**before, "download_bytes": 0, "free_bytes": after["free_bytes"]}
    refused = ggq(*command, "--dry-run")
    assert refused.returncode == 1 and "exists" in refused.stderr

"""`ggq plan` and `ggq recommend` where something is odd: what is said, and with which exit code."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner
from hubserver import HubServer

from ggq.cli.main import cli
from ggq.system import cgroup

pytestmark = pytest.mark.tool

VERBS = pytest.mark.parametrize("verb", ["plan", "recommend"])
MB = 1_000_000


@dataclass(frozen=True)
class Shown:
    exit_code: int
    stdout: str
    stderr: str


def ggq(verb: str, model: object, *more: str) -> Shown:
    found = CliRunner().invoke(cli, [verb, str(model), "--preset", "q8_0", "--no-speed", *more])
    return Shown(found.exit_code, found.stdout, " ".join(found.stderr.split()))


@pytest.fixture
def repository(hub: HubServer, example: Path) -> dict[str, bytes]:
    """The files of the embedded model."""
    return {path.name: path.read_bytes() for path in example.iterdir()}


def test_a_gpu_with_200_mb_free(larger: Path) -> None:
    """More than this model's layers: all are there; a tenth stays free."""
    told = json.loads(ggq("recommend", larger, "--vram", "200M", "--ram", "8G", "--json").stdout)
    (device,) = told["chosen"]["load"]["memory"]["devices"]
    assert 0 < device["needed_bytes"] <= device["free_bytes"] == 180 * MB
    assert told["chosen"]["load"]["offload"]["n_gpu_layers"] == 9
    assert device["name"] == "GPU0" and "on GPU0, 9 of 9 layers on GPU0" in told["reasons"][0]
    # How many threads are best there is not known here.
    assert "-t" not in told["commands"]["serve"] and "n_threads" not in told["llama"]
    asked = json.loads(ggq("recommend", larger, "--vram", "200M", "--ram", "8G", "-t", "6", "--json").stdout)
    assert asked["llama"]["n_threads"] == asked["llama"]["n_threads_batch"] == 6


def test_a_gpu_with_200_mb_and_a_model_of_more(dense: Path) -> None:
    told = json.loads(ggq("recommend", dense, "--vram", "200M", "--ram", "8G", "--json").stdout)
    load = told["chosen"]["load"]
    assert 0 < load["offload"]["n_gpu_layers"] < 17
    assert all(it["needed_bytes"] <= 180 * MB for it in load["memory"]["devices"])


@pytest.fixture
def dense(example: Path, tmp_path: Path) -> Path:
    """A checkpoint of headers for some 400 M parameters."""
    from benchmarks.headers import Shape, write

    return write(tmp_path / "dense", Shape(1024, 4096, 16, 16, 8, 2048), example)


@VERBS
def test_a_control_group_with_less_than_the_model(
    verb: str, dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's files are played by a folder, since a test cannot put its own process into a group
    everywhere; they are read as the kernel's are."""
    group = tmp_path / "cgroup"
    group.mkdir()
    (group / "memory.max").write_text(f"{150 * MB}\n")
    (group / "memory.current").write_text(f"{50 * MB}\n")
    (group / "memory.stat").write_text("anon 0\n")
    (tmp_path / "membership").write_text("0::/\n")
    monkeypatch.setattr(cgroup.limits, "__defaults__", (group, tmp_path / "membership"))
    shown = ggq(verb, dense)
    if verb == "plan":
        assert shown.exit_code == 0 and "short" in shown.stdout
    else:
        assert shown.exit_code == 3 and "No preset of dense fits" in shown.stderr


@VERBS
def test_an_unknown_architecture(verb: str, example: Path, tmp_path: Path) -> None:
    for file in example.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["UnheardOfForCausalLM"]}))
    shown = ggq(verb, tmp_path)
    assert shown.exit_code == 1 and "UnheardOfForCausalLM" in shown.stderr


@pytest.mark.hub
@VERBS
def test_weights_without_headers(verb: str, hub: HubServer, repository: dict[str, bytes]) -> None:
    import torch

    pickled = io.BytesIO()
    torch.save({"model.embed_tokens.weight": torch.zeros(8, 8)}, pickled)
    del repository["model.safetensors"]
    hub.add_repo("org/bin", repository | {"pytorch_model.bin": pickled.getvalue()})
    shown = ggq(verb, "org/bin")
    assert shown.exit_code == 1 and "after" in shown.stderr and "download" in shown.stderr
    assert hub.bytes_sent("pytorch_model.bin") == 0


@pytest.mark.hub
@VERBS
def test_a_private_repository(
    verb: str, hub: HubServer, repository: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.tokens.add("hf_secret")
    hub.add_repo("org/secret", repository, private=True, readers={"hf_secret"})
    shown = ggq(verb, "org/secret")
    assert shown.exit_code == 1
    assert "There is no model org/secret on the Hub, or it is private." in shown.stderr
    assert "HF_TOKEN" in shown.stderr
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    shown = ggq(verb, "org/secret")
    assert shown.exit_code == 0 and "hf_secret" not in shown.stdout + shown.stderr


@pytest.mark.hub
@VERBS
def test_offline_without_a_cache(verb: str, hub: HubServer, repository: dict[str, bytes]) -> None:
    hub.add_repo("org/tiny", repository)
    shown = ggq(verb, "org/tiny", "--offline")
    assert shown.exit_code == 1 and "org/tiny" in shown.stderr
    assert hub.bytes_sent("config.json") == 0

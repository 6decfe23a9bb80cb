"""Every refusal has its own words and a next step, and none has the token in it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hubserver import HubServer

from ggq import hub as library
from ggq.errors import DiskFull, GgqError, HubProblem, OutputProblem, UsageProblem
from ggq.hub import Retry
from ggq.model_ref import ModelRef, parse_reference

pytestmark = pytest.mark.hub

QUICK = Retry(attempts=3, first_wait_s=0.001, timeout_s=20)
REF = parse_reference("org/tiny")
CONTENT = {"config.json": b"{}", "model.safetensors": b"w" * 5000, "tokenizer.json": b"[]"}
TOKEN = "hf_aTokenThatMustNotBeSeen"


def refusal(ref: ModelRef = REF, kind: type[GgqError] = HubProblem, **options: object) -> GgqError:
    """The one error that a download ends with; it must say what to do, and never the token."""
    with pytest.raises(kind) as caught:
        library.download(ref, retry=QUICK, **options)
    assert caught.value.what and caught.value.next_step
    assert TOKEN not in str(caught.value)
    return caught.value


@pytest.fixture
def token(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> str:
    hub.tokens.add(TOKEN)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return TOKEN


def test_not_found_without_a_token(hub: HubServer) -> None:
    error = refusal()
    assert error.what == "There is no model org/tiny on the Hub, or it is private."
    assert "HF_TOKEN" in error.next_step


def test_a_private_model_without_a_token_looks_the_same(hub: HubServer) -> None:
    hub.add_repo("org/tiny", CONTENT, private=True)
    assert "or it is private" in refusal().what


def test_not_found_with_a_token(hub: HubServer, token: str) -> None:
    error = refusal()
    assert error.what == "There is no model org/tiny on the Hub, or this token may not see it."
    assert "HF_TOKEN" in error.why


@pytest.mark.parametrize(("kind", "word"), [("datasets", "dataset"), ("spaces", "space")])
def test_something_other_than_a_model(hub: HubServer, kind: str, word: str) -> None:
    hub.add_repo("org/tiny", {"data.csv": b"1"}, kind=kind)
    assert refusal().what == f"org/tiny is a {word}, not a model."


def test_gated_without_a_token(hub: HubServer) -> None:
    hub.add_repo("org/tiny", CONTENT, gated=True)
    error = refusal()
    assert "gated" in error.what and "No token" in error.why
    assert f"{hub.url}/org/tiny" in error.next_step and "HF_TOKEN" in error.next_step


def test_gated_with_a_token_that_has_no_access(hub: HubServer, token: str) -> None:
    hub.add_repo("org/tiny", CONTENT, gated=True)
    assert refusal().what == "org/tiny is gated, and this token has no access to it."


def test_gated_with_access(hub: HubServer, token: str) -> None:
    hub.add_repo("org/tiny", CONTENT, gated=True, readers={token})
    assert library.download(REF, retry=QUICK).folder.is_dir()


def test_a_token_that_the_hub_does_not_know(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add_repo("org/tiny", CONTENT)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    error = refusal()
    assert error.what == "The Hub does not accept this token."
    assert "HF_TOKEN" in error.why


@pytest.mark.parametrize("odd", [f"{TOKEN}\x01", f"{TOKEN}é", f"{TOKEN} x"])
def test_a_token_that_cannot_be_sent(hub: HubServer, monkeypatch: pytest.MonkeyPatch, odd: str) -> None:
    monkeypatch.setenv("HF_TOKEN", odd)
    assert "characters that no token has" in refusal().what
    assert hub.requests() == []


def test_an_unknown_revision_names_the_known(hub: HubServer) -> None:
    repo = hub.add_repo("org/tiny", CONTENT)
    repo.tags["v1.0"] = repo.refs["main"]
    error = refusal(parse_reference("org/tiny@v2"))
    assert error.what == "org/tiny has no revision 'v2'."
    assert error.why == "Its branches and tags: main, v1.0."


def test_no_network(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    error = refusal()
    assert error.what == "The Hub at http://127.0.0.1:1 could not be reached."
    assert "--offline" in error.next_step


def test_an_endpoint_that_is_no_address(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "not-an-address")
    assert "HF_ENDPOINT" in refusal().next_step


def test_an_endpoint_that_is_no_hub(hub: HubServer) -> None:
    hub.fault("/api/", status=200, headers={"Content-Type": "text/html"})
    error = refusal()
    assert "did not answer as a Hub does" in error.what
    assert "HF_ENDPOINT" in error.next_step


def test_a_hub_in_trouble(hub: HubServer) -> None:
    hub.fault("/api/", status=503, times=99)
    error = refusal()
    assert "503" in error.why and "resumes" in error.next_step
    assert len(hub.requests("/api/")) == QUICK.attempts


def test_a_connection_that_is_always_cut(hub: HubServer) -> None:
    hub.add_repo("org/tiny", CONTENT)
    hub.fault("model.safetensors", cut_after_bytes=0, times=99)
    assert "resumes" in refusal().next_step
    assert len([seen for seen in hub.requests("model.safetensors") if seen.at_cdn]) == QUICK.attempts


def test_a_rate_limit_longer_than_anyone_waits(hub: HubServer) -> None:
    hub.fault("/api/", status=429, headers={"Retry-After": "3000"})
    error = refusal()
    assert "429" in error.what and "3000 s" in error.why
    assert len(hub.requests("/api/")) == 1


@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (403, {"X-Error-Message": "Access to this resource is disabled."}, "disabled"),
        (403, {"X-Error-Message": "Pay first"}, "refused"),
        (404, {"X-Error-Code": "EntryNotFound"}, "refused"),
        (400, {}, "refused"),
        (418, {}, "refused"),
    ],
)
def test_other_refusals(hub: HubServer, status: int, headers: dict[str, str], said: str) -> None:
    hub.add_repo("org/tiny", CONTENT)
    hub.fault("config.json", status=status, headers=headers)
    assert said in refusal().what


def test_only_gguf(hub: HubServer) -> None:
    hub.add_repo("org/tiny", {"README.md": b"", "tiny-Q4_K_M.gguf": b"GGUF", "tiny-Q8_0.gguf": b"GGUF8"})
    error = refusal()
    assert "converted already" in error.what
    assert error.next_step.endswith("ggq download org/tiny --include tiny-Q4_K_M.gguf")
    done = library.download(REF, include=("tiny-Q4_K_M.gguf",), retry=QUICK)
    assert (done.folder / "tiny-Q4_K_M.gguf").read_bytes() == b"GGUF"
    assert not (done.folder / "tiny-Q8_0.gguf").exists()


@pytest.mark.parametrize(
    ("config", "card", "base"),
    [
        (b'{"base_model_name_or_path": "org/base"}', {}, "org/base"),
        (b"{}", {"base_model": "org/base-of-card"}, "org/base-of-card"),
        (b"not json", {}, "its model card names it"),
    ],
)
def test_only_an_adapter(hub: HubServer, config: bytes, card: dict[str, str], base: str) -> None:
    content = {"adapter_config.json": config, "adapter_model.safetensors": b"lora", "tokenizer.json": b"{}"}
    hub.add_repo("org/tiny", content, card=card)
    error = refusal()
    assert "only a LoRA adapter" in error.what
    assert base in error.next_step
    assert hub.bytes_sent("adapter_model") == 0


def test_no_weights_at_all(hub: HubServer) -> None:
    hub.add_repo(
        "org/tiny",
        {"config.json": b"{}", "tf_model.h5": b"tensorflow", "unet/model.safetensors": b"diffusion"},
    )
    error = refusal()
    assert "no weights that can be converted" in error.what
    assert "tf_model.h5 (10 B)" in error.why


def test_an_empty_repository(hub: HubServer) -> None:
    hub.add_repo("org/tiny", {})
    assert refusal().why == "It is empty."


@pytest.mark.parametrize(
    "name",
    ["../evil.json", "/etc/evil.json", "a/../../evil.json", "C:/evil.json", "\\\\host\\evil.json",
     "a\\..\\evil.json", "a//b.json", "./config.json", "x\0.json", "\x1b[2Jx.json", "\ud800.json", "x" * 300],
)  # fmt: skip
def test_dangerous_names(hub: HubServer, name: str) -> None:
    hub.add_repo("org/tiny", {**CONTENT, name: b"evil"})
    assert "a dangerous name" in refusal().what or "surrogate" in refusal().why
    assert not library.cache_dir().exists()


@pytest.mark.parametrize(
    "lie",
    [{"size": None}, {"size": -5}, {"size": "many"}, {"blobId": None}, {"blobId": "../../evil"},
     {"lfs": {"size": 3, "sha256": "../../evil", "pointerSize": 1}}],
)  # fmt: skip
def test_a_listing_that_cannot_be_trusted(hub: HubServer, lie: dict[str, object]) -> None:
    hub.add_repo("org/tiny", CONTENT).lies["config.json"] = lie
    assert "did not answer as a Hub does" in refusal().what


def test_a_model_that_lies_here_already(hub: HubServer, tmp_path: Path) -> None:
    assert "on this disk already" in refusal(parse_reference(str(tmp_path)), UsageProblem).what


# Offline.


@pytest.mark.parametrize("by", ["flag", "environment"])
def test_offline_takes_what_is_cached(hub: HubServer, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    repo = hub.add_repo("org/tiny", CONTENT)
    repo.tags["v1"] = repo.refs["main"]
    online = library.download(REF, retry=QUICK)
    hub.log.clear()
    if by == "environment":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = library.download(REF, offline=by == "flag")
    assert (done.folder, done.commit) == (online.folder, online.commit)
    assert (done.downloaded_bytes, done.cached_bytes) == (0, sum(map(len, CONTENT.values())))
    by_commit = library.download(ModelRef("hub", "org/tiny", online.commit), offline=True)
    assert by_commit.folder == online.folder
    assert "holds only main" in refusal(ModelRef("hub", "org/tiny", "v1"), offline=True).why
    assert hub.requests() == []


def test_offline_with_nothing_cached(hub: HubServer) -> None:
    error = refusal(offline=True)
    assert error.what == "org/tiny (revision main) is not in the Hub cache."
    assert "holds nothing of it" in error.why
    assert "ggq download org/tiny" in error.next_step


def test_offline_after_a_download_that_broke_off(hub: HubServer) -> None:
    hub.add_repo("org/tiny", CONTENT)
    hub.fault("model.safetensors", status=404)
    refusal()
    assert "only an unfinished download" in refusal(offline=True).why


def test_offline_names_the_files_that_are_missing(hub: HubServer) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    hub.add_repo(
        "org/tiny",
        {
            "config.json": b"{}",
            "model.safetensors.index.json": json.dumps(index).encode(),
            "model-00001-of-00002.safetensors": b"1",
            "model-00002-of-00002.safetensors": b"2",
        },
    )
    library.download(REF, exclude=("model-00002*",), retry=QUICK)
    error = refusal(offline=True)
    assert "only partly in the Hub cache" in error.what
    assert error.why.endswith("these are missing: model-00002-of-00002.safetensors.")
    library.download(REF, exclude=("*.safetensors", "config.json"), retry=QUICK)
    assert "*.gguf" in refusal(offline=True, include=("*.gguf",)).why


def test_offline_names_missing_weights_and_config(hub: HubServer) -> None:
    hub.add_repo("org/tiny", CONTENT)
    library.download(REF, exclude=("*.safetensors", "config.json"), retry=QUICK)
    assert refusal(offline=True).why.endswith("these are missing: config.json, the weights.")


# The disk.


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A Hub cache on a disk of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("not root: no tmpfs can be mounted here")
    monkeypatch.setenv("HF_HOME", str(disk / "hf"))
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_too_little_disk_is_known_beforehand(hub: HubServer, small_disk: Path) -> None:
    hub.add_repo("org/tiny", {**CONTENT, "model.safetensors": b"w" * 2_000_000})
    error = refusal(kind=DiskFull)
    assert "It needs 2.00 MB" in error.why and "1.05 MB free" in error.why
    assert "HF_HOME" in error.next_step
    assert hub.bytes_sent() == 0


def test_a_disk_that_fills_up_in_the_middle(hub: HubServer, small_disk: Path) -> None:
    """Another program takes the space while the file is coming; afterwards the same download goes on."""
    hub.add_repo("org/tiny", {**CONTENT, "model.safetensors": b"w" * 900_000})
    filler = small_disk / "filler"

    def fill(_: object) -> None:
        if not filler.exists():
            filler.write_bytes(b"x" * 600_000)

    error = refusal(kind=DiskFull, listener=fill)
    assert "The disk is full" in error.what and "resumes" in error.next_step
    filler.unlink()
    done = library.download(REF, retry=QUICK)
    assert (done.folder / "model.safetensors").stat().st_size == 900_000
    assert max(hub.resumed_at("model.safetensors")) > 0


def test_a_cache_that_cannot_be_written(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repo("org/tiny", CONTENT)
    (tmp_path / "file").touch()  # root may write into any folder, but into no file
    monkeypatch.setenv("HF_HOME", str(tmp_path / "file"))
    error = refusal(kind=OutputProblem)
    assert "HF_HOME" in error.next_step


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "$NAME"))
    monkeypatch.setenv("NAME", "hub")
    assert library.cache_dir() == tmp_path / "hub"
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    assert library.cache_dir() == tmp_path / "home" / "hub"
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert library.cache_dir() == tmp_path / "cache" / "huggingface" / "hub"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert library.cache_dir() == Path("~/.cache/huggingface/hub").expanduser()
    assert not library.token_present()

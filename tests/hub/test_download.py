"""Downloads by the real client from a Hub on loopback: what comes, what is kept, what is mended."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import huggingface_hub
import pytest
from hubserver import HubServer
from outputs import arrived_bytes

from ggq import hub as library
from ggq.errors import HubProblem
from ggq.hub import Retry
from ggq.model_ref import ModelRef, parse_reference
from ggq.progress import Event, Notice, Step

pytestmark = pytest.mark.hub

QUICK = Retry(attempts=4, first_wait_s=0.001, timeout_s=20)
WEIGHTS = bytes(range(256)) * 4096  # 1 MiB
REF = parse_reference("org/tiny")
CONTENT = {
    "config.json": b'{"architectures": ["LlamaForCausalLM"]}',
    "tokenizer.json": b"{}" * 500,
    "README.md": b"---\nlicense: mit\n---\n",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": WEIGHTS[::-1],
    "onnx/model.onnx": b"onnx",
}
NEEDED = ["README.md", "config.json", "model.safetensors", "tokenizer.json"]
NEEDED_BYTES = sum(len(CONTENT[name]) for name in NEEDED)


def partials() -> list[Path]:
    return list(library.cache_dir().rglob("*.incomplete"))


def blob(name: str, hub: HubServer) -> Path:
    repo = hub.repos["models", "org/tiny"]
    return library.cache_dir() / "models--org--tiny" / "blobs" / repo.commits[repo.refs["main"]][name].etag


def test_a_whole_download(hub: HubServer) -> None:
    repo = hub.add_repo("org/tiny", CONTENT, card={"license": "mit", "base_model": "org/base"})
    done = library.download(REF, retry=QUICK)
    assert [file.path for file in done.files] == NEEDED
    assert (done.repo_id, done.commit) == ("org/tiny", repo.refs["main"])
    assert (done.downloaded_bytes, done.cached_bytes) == (NEEDED_BYTES, 0)
    assert done.folder == library.cache_dir() / "models--org--tiny" / "snapshots" / done.commit
    found = {path.name: path.read_bytes() for path in done.folder.rglob("*") if path.is_file()}
    assert found == {name: CONTENT[name] for name in NEEDED}
    assert hub.bytes_sent() == NEEDED_BYTES
    assert partials() == []


def test_the_second_time_nothing_comes(hub: HubServer) -> None:
    hub.add_repo("org/tiny", CONTENT)
    first = library.download(REF, retry=QUICK)
    hub.log.clear()
    second = library.download(REF, retry=QUICK)
    assert (second.downloaded_bytes, second.cached_bytes) == (0, NEEDED_BYTES)
    assert second.folder == first.folder
    assert [seen.path for seen in hub.requests()] == ["/api/models/org/tiny/revision/main"]


def test_inspect_downloads_nothing(hub: HubServer) -> None:
    card = {"license": "other", "license_name": "tiny-1", "base_model": ["a/b"]}
    hub.add_repo("org/tiny", CONTENT, gated=True, card=card)
    model = library.inspect("org/tiny")
    assert (model.license, model.gated, model.base_models) == ("tiny-1", True, ("a/b",))
    by_path = {file.path: file for file in model.files}
    assert set(by_path) == set(CONTENT)
    assert by_path["model.safetensors"].sha256 and not by_path["model.safetensors"].git_sha1
    assert by_path["config.json"].git_sha1 and not by_path["config.json"].sha256
    assert not any(file.cached for file in model.files)
    assert hub.bytes_sent() == 0
    assert not library.cache_dir().exists()


def test_a_preview_counts_and_writes_nothing(hub: HubServer) -> None:
    hub.add_repo("org/tiny", CONTENT)
    ahead = library.preview(REF, exclude=("*.md",))
    assert [file.path for file in ahead.files] == ["config.json", "model.safetensors", "tokenizer.json"]
    assert ahead.needed_bytes == NEEDED_BYTES - len(CONTENT["README.md"])
    assert (ahead.left_out_files, ahead.cached_bytes) == (3, 0)
    assert ahead.free_bytes > 0
    assert not library.cache_dir().exists()
    library.download(REF, exclude=("*.safetensors",), retry=QUICK)
    ahead = library.preview(REF)
    assert ahead.needed_bytes == len(WEIGHTS)
    assert ahead.cached_bytes == NEEDED_BYTES - len(WEIGHTS)


def test_progress_per_file_and_in_total(hub: HubServer) -> None:
    hub.add_repo("org/tiny", CONTENT)
    events: list[Event] = []
    library.download(REF, retry=QUICK, listener=events.append)
    steps = [event for event in events if isinstance(event, Step)]
    last = {step.name: step for step in steps}
    assert {name: step.done for name, step in last.items()} == {
        **{name: len(CONTENT[name]) for name in NEEDED}, "org/tiny": NEEDED_BYTES,
    }  # fmt: skip
    assert all(step.total == last[step.name].total and step.unit == "B" for step in steps)
    sums = [step.done for step in steps if step.name == "org/tiny"]
    assert sums == sorted(sums)


def test_a_revision_is_pinned_to_its_commit(hub: HubServer) -> None:
    repo = hub.add_repo("org/tiny", CONTENT)
    old = repo.refs["main"]
    repo.tags["v1"] = old
    new = repo.commit({**CONTENT, "config.json": b'{"new": true}'})
    assert library.download(parse_reference("org/tiny@v1"), retry=QUICK).commit == old
    latest = library.download(REF, retry=QUICK)
    assert latest.commit == new
    assert (latest.folder / "config.json").read_bytes() == b'{"new": true}'
    assert latest.downloaded_bytes == len(b'{"new": true}')  # all else is the same blob
    by_commit = library.download(ModelRef("hub", "org/tiny", old), retry=QUICK)
    assert (by_commit.folder / "config.json").read_bytes() == CONTENT["config.json"]
    resolved = {seen.path.split("/")[4] for seen in hub.requests("/resolve/")}
    assert resolved == {old, new}


def test_the_cache_is_the_one_of_huggingface_hub(hub: HubServer) -> None:
    """What ggq downloads the client finds offline; what the client downloads ggq need not fetch."""
    repo = hub.add_repo("org/tiny", CONTENT)
    done = library.download(REF, retry=QUICK)
    cache = library.cache_dir()
    found = huggingface_hub.snapshot_download("org/tiny", cache_dir=cache, local_files_only=True)
    assert Path(found) == done.folder
    [scanned] = huggingface_hub.scan_cache_dir(cache).repos
    assert (scanned.repo_id, scanned.size_on_disk) == ("org/tiny", NEEDED_BYTES)
    assert [revision.refs for revision in scanned.revisions] == [frozenset({"main"})]

    shutil.rmtree(cache)
    huggingface_hub.snapshot_download("org/tiny", cache_dir=cache, endpoint=hub.url, allow_patterns=NEEDED)
    hub.log.clear()
    assert library.download(REF, retry=QUICK).downloaded_bytes == 0
    assert hub.bytes_sent() == 0
    assert done.commit == repo.refs["main"]


def test_a_folder_is_served_and_comes_back_equal(hub: HubServer, stories: Path) -> None:
    source = stories
    hub.add_repo("karpathy/stories260K", source)
    done = library.download(parse_reference("karpathy/stories260K"), retry=QUICK)
    assert len(done.files) > 2
    for file in done.files:
        assert (done.folder / file.path).read_bytes() == (source / file.path).read_bytes()


def test_the_token_goes_to_the_hub_and_not_to_the_content_network(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.tokens.add("hf_secret")
    hub.add_repo("org/tiny", CONTENT, private=True, readers={"hf_secret"})
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert library.token_present()
    done = library.download(REF, retry=QUICK)
    assert {seen.token for seen in hub.requests() if not seen.at_cdn} == {"hf_secret"}
    assert [seen.token for seen in hub.requests() if seen.at_cdn] == [None]
    kept = [path for path in library.cache_dir().rglob("*") if path.is_file()]
    assert kept and not any(b"hf_secret" in path.read_bytes() for path in kept)
    assert "hf_secret" not in repr(done)


# Breaks, and going on after them.


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_a_cut_connection_goes_on_where_it_was(hub: HubServer, reset: bool) -> None:
    hub.add_repo("org/tiny", CONTENT)
    hub.fault("model.safetensors", cut_after_bytes=300_000, reset=reset, times=3)
    events: list[Event] = []
    done = library.download(REF, retry=QUICK, listener=events.append)
    assert (done.folder / "model.safetensors").read_bytes() == WEIGHTS
    ranges = [seen.range for seen in hub.requests("model.safetensors") if seen.at_cdn]
    assert ranges[0] is None and len(ranges) == 4
    assert all(asked and asked.startswith("bytes=") for asked in ranges[1:])
    if not reset:  # a reset may throw away what had arrived but was not read yet
        assert hub.bytes_sent("model.safetensors") == len(WEIGHTS)
        assert done.downloaded_bytes == NEEDED_BYTES
    notices = [event for event in events if isinstance(event, Notice)]
    assert len(notices) == 3
    assert all("trying again" in notice.text for notice in notices)


def test_progress_makes_patience_new(hub: HubServer) -> None:
    """Many cuts, each after some progress, do not use the attempts up."""
    hub.add_repo("org/tiny", CONTENT)
    hub.fault("model.safetensors", cut_after_bytes=100_000, times=10)
    done = library.download(REF, retry=Retry(attempts=2, first_wait_s=0.001))
    assert (done.folder / "model.safetensors").read_bytes() == WEIGHTS


def test_a_server_that_is_silent_is_asked_again(hub: HubServer) -> None:
    hub.add_repo("org/tiny", CONTENT)
    hub.fault("model.safetensors", stall_s=30)
    done = library.download(REF, retry=Retry(attempts=3, first_wait_s=0.001, timeout_s=0.3))
    assert (done.folder / "model.safetensors").read_bytes() == WEIGHTS


def test_a_server_that_ignores_ranges_starts_the_file_afresh(hub: HubServer) -> None:
    hub.add_repo("org/tiny", CONTENT)
    hub.fault("model.safetensors", cut_after_bytes=300_000)
    hub.fault("model.safetensors", ignore_range=True)
    done = library.download(REF, retry=QUICK)
    assert (done.folder / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("status", [500, 502, 503, 504, 408])
def test_a_burst_of_server_errors_is_waited_out(hub: HubServer, status: int) -> None:
    hub.add_repo("org/tiny", CONTENT)
    hub.fault("/api/models/org/tiny", status=status, times=2)
    hub.fault("/resolve/", status=status, times=2)
    done = library.download(REF, retry=QUICK)
    assert done.downloaded_bytes == NEEDED_BYTES


def test_too_many_requests_are_slowed_as_the_hub_asks(hub: HubServer) -> None:
    hub.add_repo("org/tiny", CONTENT)
    hub.fault("/api/models", status=429, headers={"Retry-After": "0"}, times=2)
    hub.fault("config.json", status=429, headers={"RateLimit": '"resolvers";r=0;t=0'})
    events: list[Event] = []
    library.download(REF, retry=Retry(attempts=4, first_wait_s=60), listener=events.append)
    waits = [event.text for event in events if isinstance(event, Notice)]
    assert len(waits) == 3
    assert all("429" in text and "in 0 s" in text for text in waits)


def test_an_interrupted_download_is_resumed_by_the_next(hub: HubServer) -> None:
    hub.add_repo("org/tiny", CONTENT)
    hub.fault("model.safetensors", cut_after_bytes=700_000)
    hub.fault("model.safetensors", cut_after_bytes=0, times=9)
    only_weights = ("*.json", "*.md")
    with pytest.raises(HubProblem, match="resumes"):
        library.download(REF, exclude=only_weights, retry=QUICK)
    [partial] = partials()
    assert partial.stat().st_size == 700_000
    assert not (library.cache_dir() / "models--org--tiny" / "snapshots").exists()
    hub.faults.clear()
    hub.log.clear()
    assert library.preview(REF, exclude=only_weights).needed_bytes == len(WEIGHTS) - 700_000
    done = library.download(REF, exclude=only_weights, retry=QUICK)
    assert (done.folder / "model.safetensors").read_bytes() == WEIGHTS
    assert (done.downloaded_bytes, done.cached_bytes) == (len(WEIGHTS) - 700_000, 700_000)
    assert hub.bytes_sent() == len(WEIGHTS) - 700_000


def test_a_killed_download_is_resumed_by_the_next(hub: HubServer, isolated_environment: Path) -> None:
    hub.add_repo("org/tiny", CONTENT)
    slow = hub.fault("model.safetensors", bytes_per_s=400_000)
    child = subprocess.Popen(
        [sys.executable, "-c", "from ggq import hub; from ggq.model_ref import ModelRef; "
         "hub.download(ModelRef('hub', 'org/tiny'))"]
    )  # fmt: skip
    try:
        while arrived_bytes(library.cache_dir()) <= 100_000:
            assert child.poll() is None
            threading.Event().wait(0.02)
    finally:
        child.kill()
        child.wait()
    assert slow.times == 0
    done = library.download(REF, retry=QUICK)
    assert (done.folder / "model.safetensors").read_bytes() == WEIGHTS
    assert max(hub.resumed_at("model.safetensors")) > 100_000


def test_two_at_once_fetch_each_file_once(hub: HubServer) -> None:
    hub.add_repo("org/tiny", CONTENT)
    hub.fault("model.safetensors", bytes_per_s=2_000_000)
    results: list[library.Download] = []
    threads = [
        threading.Thread(target=lambda: results.append(library.download(REF, retry=QUICK))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2
    assert hub.bytes_sent("model.safetensors") == len(WEIGHTS)


# Damage.


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"], ids=["sha256", "git-sha1"])
def test_a_wrong_digest_is_refused_and_deleted(hub: HubServer, name: str) -> None:
    hub.add_repo("org/tiny", CONTENT)
    hub.fault(name, flip_byte=500)
    with pytest.raises(HubProblem, match=f"{name} of org/tiny arrived damaged, and was deleted"):
        library.download(REF, retry=QUICK)
    assert not blob(name, hub).exists()
    assert not [path for path in partials() if path.name.startswith(blob(name, hub).name)]
    assert (library.download(REF, retry=QUICK).folder / name).read_bytes() == CONTENT[name]


def test_a_damaged_part_is_thrown_away_and_fetched_again(hub: HubServer) -> None:
    hub.add_repo("org/tiny", CONTENT)
    part = blob("model.safetensors", hub).with_suffix(".incomplete")
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 5000)
    events: list[Event] = []
    done = library.download(REF, retry=QUICK, listener=events.append)
    assert (done.folder / "model.safetensors").read_bytes() == WEIGHTS
    assert any(isinstance(event, Notice) and "damaged" in event.text for event in events)


@pytest.mark.parametrize("kept_bytes", [len(WEIGHTS), len(WEIGHTS) + 7], ids=["whole", "too long"])
def test_a_part_that_is_whole_or_too_long(hub: HubServer, kept_bytes: int) -> None:
    hub.add_repo("org/tiny", CONTENT)
    part = blob("model.safetensors", hub).with_suffix(".incomplete")
    part.parent.mkdir(parents=True)
    part.write_bytes((WEIGHTS + b"1234567")[:kept_bytes])
    done = library.download(REF, retry=QUICK)
    assert (done.folder / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.bytes_sent("model.safetensors") == (0 if kept_bytes == len(WEIGHTS) else len(WEIGHTS))


def test_a_truncated_blob_is_not_taken_for_the_file(hub: HubServer) -> None:
    hub.add_repo("org/tiny", CONTENT)
    done = library.download(REF, retry=QUICK)
    os.truncate(blob("model.safetensors", hub), 1000)
    again = library.download(REF, retry=QUICK)
    assert again.downloaded_bytes == len(WEIGHTS)
    assert (done.folder / "model.safetensors").read_bytes() == WEIGHTS


def test_more_bytes_than_announced_are_refused(hub: HubServer) -> None:
    repo = hub.add_repo("org/tiny", CONTENT)
    repo.lies["tokenizer.json"] = {"size": 10}
    with pytest.raises(HubProblem, match="longer than the Hub announces"):
        library.download(REF, retry=QUICK)
    assert not blob("tokenizer.json", hub).exists()


def test_fewer_bytes_than_announced_are_refused(hub: HubServer) -> None:
    repo = hub.add_repo("org/tiny", CONTENT)
    repo.lies["tokenizer.json"] = {"size": 100_000}
    with pytest.raises(HubProblem):
        library.download(REF, retry=QUICK)
    assert not blob("tokenizer.json", hub).exists()


def test_an_empty_file(hub: HubServer) -> None:
    hub.add_repo("org/tiny", {**CONTENT, "merges.txt": b""})
    assert (library.download(REF, retry=QUICK).folder / "merges.txt").read_bytes() == b""


def test_a_file_system_without_symlinks(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a disk cannot be had here, so the refusal alone is imitated."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    hub.add_repo("org/tiny", CONTENT)
    monkeypatch.setattr(os, "symlink", refuse)
    done = library.download(REF, retry=QUICK)
    assert (done.folder / "model.safetensors").read_bytes() == WEIGHTS
    assert library.download(REF, retry=QUICK).downloaded_bytes == 0

"""One file of a dataset, by the real client from a Hub on loopback."""

from __future__ import annotations

import socket

import huggingface_hub
import pytest
from hubserver import HubServer

from ggq import hub as library
from ggq.errors import HubProblem
from ggq.hub import Retry

pytestmark = pytest.mark.hub

QUICK = Retry(attempts=3, first_wait_s=0.001, timeout_s=20)
ZIP = bytes(range(256)) * 1024
CONTENT = {"texts.zip": ZIP, "README.md": b"# texts\n", "sub/small.txt": b"small"}


@pytest.fixture
def texts(hub: HubServer) -> HubServer:
    hub.add_repo("org/texts", CONTENT, kind="datasets")
    return hub


def refusal(repo_id: str = "org/texts", path: str = "texts.zip", *, offline: bool = False) -> HubProblem:
    with pytest.raises(HubProblem) as caught:
        library.dataset_file(repo_id, path, offline=offline, retry=QUICK)
    assert caught.value.what and caught.value.next_step
    return caught.value


def test_one_file_comes_and_no_other(texts: HubServer) -> None:
    found = library.dataset_file("org/texts", "texts.zip", retry=QUICK)
    commit = texts.repos["datasets", "org/texts"].refs["main"]
    assert found == library.cache_dir() / "datasets--org--texts" / "snapshots" / commit / "texts.zip"
    assert found.read_bytes() == ZIP
    assert texts.bytes_sent() == len(ZIP)
    assert library.dataset_file("org/texts", "sub/small.txt", retry=QUICK).read_bytes() == b"small"


def test_the_second_time_nothing_comes(texts: HubServer) -> None:
    first = library.dataset_file("org/texts", "texts.zip", retry=QUICK)
    texts.log.clear()
    assert library.dataset_file("org/texts", "texts.zip", retry=QUICK) == first
    assert [seen.path for seen in texts.requests()] == ["/api/datasets/org/texts/revision/main"]


def test_the_cache_is_the_one_of_huggingface_hub(texts: HubServer) -> None:
    found = library.dataset_file("org/texts", "texts.zip", retry=QUICK)
    theirs = huggingface_hub.hf_hub_download(
        "org/texts", "texts.zip", repo_type="dataset", cache_dir=library.cache_dir(), local_files_only=True
    )
    assert theirs == str(found)


def test_a_connection_that_breaks_goes_on_where_it_was(texts: HubServer) -> None:
    texts.fault("texts.zip", cut_after_bytes=100_000)
    assert library.dataset_file("org/texts", "texts.zip", retry=QUICK).read_bytes() == ZIP
    assert all(0 < start <= 100_000 for start in texts.resumed_at("texts.zip"))
    assert texts.bytes_sent() == len(ZIP)


def test_the_next_attempt_takes_up_what_a_failed_one_left(texts: HubServer) -> None:
    texts.fault("texts.zip", cut_after_bytes=100_000)
    texts.fault("texts.zip", times=float("inf"), cut_after_bytes=0)
    refusal()
    texts.faults.clear()
    texts.log.clear()
    assert library.dataset_file("org/texts", "texts.zip", retry=QUICK).read_bytes() == ZIP
    assert 0 < texts.bytes_sent() == len(ZIP) - texts.resumed_at("texts.zip")[0] < len(ZIP)


def test_a_file_that_arrives_damaged_is_refused(texts: HubServer) -> None:
    texts.fault("texts.zip", flip_byte=70_000)
    assert "arrived damaged" in refusal().what
    assert library.dataset_file("org/texts", "texts.zip", retry=QUICK).read_bytes() == ZIP


def test_offline(texts: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    error = refusal(offline=True)
    assert error.what == "org/texts (revision main) is not in the Hub cache."
    assert "ggq download" not in error.next_step
    found = library.dataset_file("org/texts", "texts.zip", retry=QUICK)
    texts.log.clear()
    assert library.dataset_file("org/texts", "texts.zip", offline=True) == found
    assert "in the Hub cache" in refusal(path="README.md", offline=True).what
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert library.dataset_file("org/texts", "texts.zip") == found
    assert texts.log == []


def test_no_such_dataset_and_no_such_file(texts: HubServer) -> None:
    texts.add_repo("org/model", {"config.json": b"{}"})
    for repo_id in ("org/none", "org/model"):
        assert refusal(repo_id).what == f"There is no dataset {repo_id} on the Hub, or it is private."
    error = refusal(path="other.zip")
    assert error.what == "The dataset org/texts has no file other.zip on the Hub."
    assert f"{texts.url}/datasets/org/texts" in error.next_step


def test_gated(hub: HubServer) -> None:
    hub.add_repo("org/gated", CONTENT, kind="datasets", gated=True)
    assert f"{hub.url}/datasets/org/gated" in refusal("org/gated").next_step


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{probe.getsockname()[1]}")
    assert "could not be reached" in refusal().what

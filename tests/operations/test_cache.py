"""What the caches hold and what is removed: of the Hub's as the real client fills it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hubserver import HubServer
from huggingface_hub import HfApi

from ggq import hub as ggq_hub
from ggq.cli.main import cli
from ggq.system import places

pytestmark = pytest.mark.hub
CONFIG = b'{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}'


def cache(*options: str) -> Result:
    return CliRunner().invoke(cli, ["cache", *options])


def listed(*options: str) -> dict[str, dict[str, object]]:
    done = cache(*options, "--json")
    assert done.exit_code == 0, done.output
    return {it["name"]: it for it in json.loads(done.stdout)["entries"]}


@pytest.fixture
def filled(hub: HubServer) -> HubServer:
    """Two models of the Hub, one in two commits, and files of ggq's own."""
    for name, size in (("org/small", 1000), ("org/large", 50_000)):
        hub.add_repo(name, {"config.json": CONFIG, "model.safetensors": b"\0" * size})
        fetch(hub, name)
    hub.repos["models", "org/small"].commit({"config.json": CONFIG, "model.safetensors": b"\1" * 2000})
    fetch(hub, "org/small")
    own = places.cache() / "hollow" / "a-model"
    own.mkdir(parents=True)
    with (own / "weights.gguf").open("wb") as stream:
        stream.write(b"x" * 5000)
        stream.truncate(1 << 40)  # a hole: it takes no disk
    return hub


def fetch(hub: HubServer, repo_id: str) -> None:
    HfApi(endpoint=hub.url).snapshot_download(repo_id, cache_dir=ggq_hub.cache_dir())


def test_it_lists_both_caches_by_what_they_take(filled: HubServer) -> None:
    found = listed()
    assert next(iter(found)) == "org/large"
    assert set(found) == {"org/large", "org/small", "hollow/a-model"}
    assert 50_000 <= int(str(found["org/large"]["disk_bytes"])) < 60_000
    assert "2 snapshots" in str(found["org/small"]["what"])
    assert int(str(found["hollow/a-model"]["disk_bytes"])) < 1 << 20, "a hole was counted"


def test_nothing_is_removed_unasked(filled: HubServer) -> None:
    before = listed()
    refused = cache("org/large", "--remove")
    assert refused.exit_code == 1
    assert "--yes" in refused.stderr
    assert cache("--remove").exit_code == 2
    assert cache("org/large", "--remove", "--dry-run").exit_code == 0
    assert listed() == before


def test_what_is_named_is_removed_and_nothing_else(filled: HubServer) -> None:
    done = cache("org/large", "hollow/a-model", "--remove", "--yes")
    assert done.exit_code == 0, done.output
    assert set(listed()) == {"org/small"}
    # What is left is whole: nothing of it is fetched again.
    filled.log.clear()
    fetch(filled, "org/small")
    assert filled.bytes_sent("safetensors") == 0
    fetch(filled, "org/large")
    assert filled.bytes_sent("safetensors") == 50_000


def test_one_snapshot_goes_and_the_other_stays(filled: HubServer) -> None:
    first, second = filled.repos["models", "org/small"].commits
    assert cache(f"org/small@{first[:8]}", "--remove", "--yes").exit_code == 0
    folder = ggq_hub.cache_dir() / "models--org--small"
    assert [it.name for it in (folder / "snapshots").iterdir()] == [second]
    sizes = sorted(it.stat().st_size for it in (folder / "blobs").iterdir())
    assert sizes == [len(CONFIG), 2000], "a blob that nobody needs stays, or one that is needed went"


def test_unfinished_downloads_are_seen(hub: HubServer) -> None:
    blobs = ggq_hub.cache_dir() / "models--org--broken" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "abc.incomplete").write_bytes(b"\0" * 7000)
    found = listed()
    assert found["org/broken"]["disk_bytes"] == 7000
    assert "7.00 kB unfinished" in str(found["org/broken"]["what"])
    assert cache("org/broken", "--remove", "--yes").exit_code == 0
    assert not blobs.exists()


def test_by_age(filled: HubServer) -> None:
    old = time.time() - 40 * 86_400
    os.utime(places.cache() / "hollow" / "a-model" / "weights.gguf", (old, old))
    assert set(listed("--older-than", "30d")) == {"hollow/a-model"}
    assert set(listed("--older-than", "6w")) == set()
    assert cache("--older-than", "soon").exit_code == 2


def test_a_name_that_is_not_there(filled: HubServer) -> None:
    done = cache("org/other", "--remove", "--yes")
    assert done.exit_code == 2
    assert "No cache holds org/other" in done.stderr


def test_an_empty_cache(tmp_path: Path) -> None:
    assert "There is nothing" in cache().stdout

"""A repository as a hollow checkpoint: what is fetched, what is not, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hubserver import HubServer

from ggq import hub as the_hub
from ggq.checkpoint import checkpoint
from ggq.errors import CheckpointProblem, HubProblem
from ggq.hub.headers import Gathered
from ggq.model_ref import ModelRef
from ggq.system import files

pytestmark = pytest.mark.hub


def gathered(tmp_path: Path, repo_id: str = "org/tiny-llama", *, offline: bool = False) -> Gathered:
    return the_hub.gather(the_hub.inspect(repo_id, offline=offline), tmp_path / "made", offline=offline)


def test_the_headers_and_the_small_files(hub: HubServer, example: Path, tmp_path: Path) -> None:
    hub.add_repo("org/tiny-llama", example)
    found = gathered(tmp_path)
    assert not found.with_values
    assert found.received_bytes == hub.bytes_sent()
    made, real = checkpoint.read(found.folder), checkpoint.read(example)
    assert (made.config, made.tensors) == (real.config, real.tensors)
    assert made.tokenizer_files == real.tokenizer_files
    weights = found.folder / "model.safetensors"
    assert weights.stat().st_size == (example / "model.safetensors").stat().st_size
    assert (files.allocated_bytes(weights) or 0) <= 32 << 10
    assert not (found.folder / "LICENSE-python.txt").exists()


def test_a_header_longer_than_the_first_read(hub: HubServer, example: Path, tmp_path: Path) -> None:
    folder = tmp_path / "long"
    folder.mkdir()
    (folder / "config.json").write_bytes((example / "config.json").read_bytes())
    header = {f"tensor.{i}": {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]} for i in range(1000)}
    text = json.dumps(header).encode()
    start = len(text).to_bytes(8, "little")
    files.write_hollow(folder / "model.safetensors", start + text, 1008 + len(text))
    hub.add_repo("org/long", folder)
    found = gathered(tmp_path, "org/long")
    assert len(checkpoint.read(found.folder).tensors) == 1000
    assert hub.bytes_sent("model.safetensors") == (32 << 10) + 8 + len(text)


def test_a_server_that_ignores_ranges(hub: HubServer, example: Path, tmp_path: Path) -> None:
    hub.add_repo("org/tiny-llama", example)
    hub.fault("model.safetensors", ignore_range=True)
    found = gathered(tmp_path)
    assert len(checkpoint.read(found.folder).tensors) == len(checkpoint.read(example).tensors)


def test_a_connection_that_breaks(hub: HubServer, example: Path, tmp_path: Path) -> None:
    hub.add_repo("org/tiny-llama", example)
    hub.fault("model.safetensors", cut_after_bytes=1000)
    assert checkpoint.read(gathered(tmp_path).folder).tensors


def test_a_header_that_lies(hub: HubServer, example: Path, tmp_path: Path) -> None:
    content = {file.name: file.read_bytes() for file in example.iterdir()}
    content["model.safetensors"] = b"\xff" * 8 + content["model.safetensors"][8:]
    hub.add_repo("org/tiny-llama", content)
    with pytest.raises(CheckpointProblem):
        checkpoint.read(gathered(tmp_path).folder)


def test_what_is_whole_in_the_cache_is_taken_as_it_is(hub: HubServer, example: Path, tmp_path: Path) -> None:
    from ggq.hub import download

    hub.add_repo("org/tiny-llama", example)
    whole = download(ModelRef("hub", "org/tiny-llama"))
    before = hub.bytes_sent()
    for offline in (False, True):
        assert gathered(tmp_path, offline=offline) == Gathered(whole.folder, True, 0)
    assert hub.bytes_sent() == before


def test_offline_the_headers_alone_are_not_enough(hub: HubServer, example: Path, tmp_path: Path) -> None:
    hub.add_repo("org/tiny-llama", example)
    gathered(tmp_path)
    with pytest.raises(HubProblem, match="only partly"):
        gathered(tmp_path, offline=True)


def test_pickles_have_no_header(hub: HubServer, tmp_path: Path) -> None:
    hub.add_repo("org/old", {"config.json": b"{}", "pytorch_model.bin": b"pickle"})
    with pytest.raises(CheckpointProblem, match="can only be planned after download"):
        gathered(tmp_path, "org/old")
    assert hub.bytes_sent() == 0


def test_a_repository_without_weights(hub: HubServer, tmp_path: Path) -> None:
    hub.add_repo("org/empty", {"config.json": b"{}"})
    with pytest.raises(HubProblem, match="no weights"):
        gathered(tmp_path, "org/empty")


def test_for_a_stream_what_the_converter_reads_by_itself_is_whole(
    hub: HubServer, example: Path, tmp_path: Path
) -> None:
    weights = (example / "model.safetensors").read_bytes()
    content = {file.name: file.read_bytes() for file in example.iterdir()}
    del content["model.safetensors"]
    content |= {"1_Dense/config.json": b"{}", "1_Dense/model.safetensors": weights[:5000]}
    content["model-00001-of-00002.safetensors"] = weights
    content["model-00002-of-00002.safetensors"] = weights[:-1] + b"!"
    hub.add_repo("org/dense", content)
    the_hub.download(ModelRef("hub", "org/dense"), exclude=["model-00002*", "1_Dense/*"])
    found = the_hub.gather(the_hub.inspect("org/dense"), tmp_path / "made", for_stream=True).folder
    assert (found / "1_Dense" / "model.safetensors").read_bytes() == weights[:5000]
    # What is in the cache is not made hollow, and not read again.
    assert (found / "model-00001-of-00002.safetensors").read_bytes() == weights
    remote = the_hub.RemoteWeights(the_hub.inspect("org/dense"), found)
    assert remote.files == ("model-00002-of-00002.safetensors",)


def test_offline_the_files_are_told_from_others_by_their_digests(hub: HubServer, example: Path) -> None:
    hub.add_repo("org/tiny-llama", example)
    the_hub.download(ModelRef("hub", "org/tiny-llama"))
    online = {file.path: file.blob_name for file in the_hub.inspect("org/tiny-llama").files if file.cached}
    offline = {file.path: file.blob_name for file in the_hub.inspect("org/tiny-llama", offline=True).files}
    assert offline == online and all(online.values())

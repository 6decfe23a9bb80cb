"""Which files of a repository are taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from ggq.errors import UsageProblem
from ggq.hub import RemoteFile, select_files

_SHARDS = [
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
]
_CONFIG = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]


def _chosen(names: list[str], include: tuple[str, ...] = (), exclude: tuple[str, ...] = ()) -> list[str]:
    files = [RemoteFile(name, 1, None, "0" * 40, False) for name in names]
    return [file.path for file in select_files(files, include, exclude)]


@pytest.mark.parametrize(
    ("kept", "left"),
    [
        pytest.param(
            ["model.safetensors", *_CONFIG, "README.md", "LICENSE", "merges.txt", "vocab.json"],
            [".gitattributes", "pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "rust_model.ot",
             "onnx/model.onnx", "onnx/config.json", "training_args.bin", "trainer_state.json",
             "eval_results.json"],
            id="one file, with every other format beside it",
        ),
        pytest.param(
            [*_SHARDS, *_CONFIG, "LICENSE.txt", "tokenizer.model"],
            ["original/consolidated.00.pth", "original/params.json", "original/tokenizer.model",
             "USE_POLICY.md", "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"],
            id="shards, and Meta's original folder",
        ),
        pytest.param(
            [*_SHARDS, "params.json", "tekken.json", *_CONFIG],
            ["consolidated.safetensors", "model.safetensors"],
            id="shards over the same weights in one file, in two forms",
        ),
        pytest.param(
            ["consolidated.safetensors", "params.json", "tekken.json"], [], id="only Mistral's own form"
        ),
        pytest.param(
            ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin",
             "pytorch_model.bin.index.json", *_CONFIG],
            ["optimizer.bin", "training_args.bin", "scheduler.bin", "pytorch_model.bin"],
            id="only .bin",
        ),
        pytest.param(
            ["model.safetensors", *_CONFIG],
            ["model.fp16.safetensors", "model.bf16-00001-of-00002.safetensors", "pytorch_model.fp16.bin",
             "model.safetensors.index.fp16.json", "adapter_model.safetensors", "adapter_config.json"],
            id="variants and an adapter beside the weights",
        ),
        pytest.param(
            ["model.safetensors-00001-of-00002.safetensors", "model.safetensors-00002-of-00002.safetensors",
             "model.safetensors.index.json", "mtp.safetensors", "config.json"],
            [],
            id="unusual names of shards, and a part for multi-token prediction",
        ),
        pytest.param(
            ["model.safetensors", "modules.json", "1_Pooling/config.json", "2_Dense/config.json",
             "2_Dense/model.safetensors", "additional_chat_templates/rag.jinja", "chat_template.jinja",
             "config.json"],
            ["openvino/openvino_model.bin", "2_Dense/pytorch_model.bin", "1_Pooling/notes/config.json"],
            id="the subfolders that the converter reads",
        ),
        pytest.param(
            ["model.safetensors", "config.json", "qwen.tiktoken", "spiece.model", "rwkv_vocab_v20230424.txt"],
            ["requirements.txt", "modeling_custom.py", "model-Q4_K_M.gguf", "logo.png"],
            id="tokenizers of every kind, no code",
        ),
    ],
)  # fmt: skip
def test_what_a_conversion_needs(kept: list[str], left: list[str]) -> None:
    assert sorted(_chosen([*left, *kept])) == sorted(kept)


def test_include_adds_and_exclude_has_the_last_word() -> None:
    names = ["config.json", "model.safetensors", "a-Q4_K_M.gguf", "b-Q8_0.gguf", "onnx/model.onnx"]
    assert _chosen(names, include=("*Q4*", "onnx/*")) == [
        "config.json", "model.safetensors", "a-Q4_K_M.gguf", "onnx/model.onnx",
    ]  # fmt: skip
    assert _chosen(names, include=("*.gguf",), exclude=("*.safetensors", "b-*")) == [
        "config.json", "a-Q4_K_M.gguf",
    ]  # fmt: skip


def test_an_include_that_matches_nothing_says_what_there_is() -> None:
    with pytest.raises(UsageProblem, match=r"--include '\*\.gguf'.*config\.json, model\.safetensors"):
        _chosen(["config.json", "model.safetensors"], include=("*.gguf",))


def test_shards_that_only_names_announce() -> None:
    from ggq.hub.file_selection import missing_shards

    assert missing_shards(["model-00002-of-00003.safetensors"]) == (
        "model-00001-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
    )
    assert missing_shards(["model-00001-of-00001.safetensors", "model.safetensors", "a-1-of-2.bin"]) == ()
    many = [f"model{index}-00001-of-99999.bin" for index in range(1000)]
    assert len(missing_shards(many)) < 1_000_000


def test_a_half_finished_cache_names_what_is_missing(isolated_environment: Path) -> None:
    from ggq import hub
    from ggq.errors import HubProblem
    from ggq.model_ref import parse_reference

    repo = hub.cache_dir() / "models--org--half"
    snapshot = repo / "snapshots" / ("ab" * 20)
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("ab" * 20)
    for name in ("config.json", "tokenizer.json", "model-00002-of-00002.safetensors"):
        (snapshot / name).write_text("{}")
    found = hub.inspect("org/half", offline=True)
    assert hub.missing_files(found) == ("model-00001-of-00002.safetensors",)
    with pytest.raises(HubProblem, match="model-00001-of-00002"):
        hub.preview(parse_reference("org/half"), offline=True)


def test_a_snapshot_folder_is_known_by_its_place(tmp_path: Path) -> None:
    from ggq import hub
    from ggq.conversion.source import model_name, source_of

    commit = "0123456789abcdef" * 2 + "01234567"
    folder = tmp_path / "models--org--whole" / "snapshots" / commit
    folder.mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(folder)
    for place in (folder, link):
        assert hub.snapshot_of(place) == ("org/whole", commit)
        assert model_name(place) == "whole"
    assert hub.snapshot_of(tmp_path / "models--gpt2" / "snapshots" / commit) == ("gpt2", commit)
    for other in ("models--org--whole/snapshots/main", f"models--a--b--c/snapshots/{commit}", "x"):
        assert hub.snapshot_of(tmp_path / other) is None
        assert source_of(tmp_path / other) is None

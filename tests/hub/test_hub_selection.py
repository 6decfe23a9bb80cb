"""Which files of a repository are taken."""

from __future__ import annotations

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

"""Checkpoint folders: real ones are read in milliseconds; what is missing or damaged is named."""

from __future__ import annotations

import json
import shutil
import struct
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from mutants import little_memory, mutants
from safetensors.numpy import save_file

from ggq.checkpoint import checkpoint, storage
from ggq.errors import CheckpointProblem

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "max_position_embeddings": 2048,
    "vocab_size": 32,
}
TENSORS: dict[str, Any] = {
    "model.embed_tokens.weight": np.zeros((32, 8), dtype=np.float16),
    "model.layers.0.self_attn.q_proj.weight": np.zeros((8, 8), dtype=np.float16),
    "model.layers.0.mlp.gate_proj.weight": np.zeros((16, 8), dtype=np.float16),
    "model.layers.0.input_layernorm.weight": np.zeros(8, dtype=np.float32),
    "lm_head.weight": np.zeros((32, 8), dtype=np.float16),
}
README = "---\nlicense: apache-2.0\nbase_model: org/base\n---\n# Card\nlicense: no\n"


def write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small checkpoint in two shards."""
    folder = tmp_path / "model"
    folder.mkdir()
    write_json(folder / "config.json", CONFIG)
    write_json(
        folder / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer", "chat_template": "{{ x }}"}
    )
    write_json(folder / "tokenizer.json", {"model": {}})
    (folder / "README.md").write_text(README, encoding="utf-8")
    names = list(TENSORS)
    weight_map: dict[str, str] = {}
    for number, part in enumerate((names[:2], names[2:]), 1):
        shard = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: TENSORS[name] for name in part}, folder / shard, {"format": "pt"})
        weight_map |= dict.fromkeys(part, shard)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    return folder


def test_what_it_says_of_itself(folder: Path) -> None:
    found = checkpoint.read(folder)
    assert found.architectures == ("LlamaForCausalLM",) and found.model_type == "llama"
    assert found.context_length == 2048 and found.vocabulary_size == 32
    assert found.parameter_count == sum(array.size for array in TENSORS.values())
    assert found.weight_bytes == sum(array.nbytes for array in TENSORS.values())
    assert found.dtype == "F16" and found.weight_format == "safetensors" and found.quantization is None
    assert [file.name for file in found.weight_files] == [
        f"model-0000{number}-of-00002.safetensors" for number in (1, 2)
    ]
    assert {tensor.name: tensor.shape for tensor in found.tensors} == {
        name: array.shape for name, array in TENSORS.items()
    }
    groups = {tensor.name: tensor.group for tensor in found.tensors}
    assert [groups[name] for name in TENSORS] == ["embeddings", "attention", "ffn", "norms", "output"]
    assert found.tokenizer_files == ("tokenizer.json", "tokenizer_config.json")
    assert found.tokenizer_class == "LlamaTokenizer" and found.has_chat_template
    assert found.license == "apache-2.0"
    checkpoint.require_convertible(found)


def test_a_checkpoint_of_many_tensors_is_read_in_milliseconds(folder: Path) -> None:
    for file in folder.glob("model*"):
        file.unlink()
    tensors = {
        f"model.layers.{index}.mlp.up_proj.weight": np.zeros(2, dtype=np.float16) for index in range(2000)
    }
    save_file(tensors, folder / "model.safetensors")
    start = time.process_time()
    assert len(checkpoint.read(folder).tensors) == 2000
    assert time.process_time() - start < 0.2


def test_weights_are_not_read(folder: Path) -> None:
    """A safetensors file of 64 GB that is a header and a hole."""
    for file in folder.glob("model*"):
        file.unlink()
    size = 64 << 30
    header = json.dumps(
        {"w": {"dtype": "BF16", "shape": [size >> 10, 512], "data_offsets": [0, size]}}
    ).encode()
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(struct.pack("<Q", len(header)) + header)
        stream.truncate(8 + len(header) + size)
    found = checkpoint.read(folder)
    assert found.weight_bytes == size and found.parameter_count == size // 2 and found.dtype == "BF16"


def test_text_settings_of_a_multimodal_config(folder: Path) -> None:
    write_json(
        folder / "config.json",
        {
            "architectures": ["Gemma3ForConditionalGeneration"],
            "text_config": {
                "max_position_embeddings": 4096,
                "vocab_size": 9,
                "quantization_config": {"quant_method": "fp8"},
            },
        },
    )
    found = checkpoint.read(folder)
    assert (found.context_length, found.vocabulary_size) == (4096, 9)
    assert found.storage.ignored == "fp8" and found.quantization is None


def test_bin_weights_are_listed_and_not_opened(folder: Path) -> None:
    for file in folder.glob("model*"):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"a pickle that nobody opens")
    write_json(folder / "config.json", CONFIG | {"torch_dtype": "bfloat16"})
    found = checkpoint.read(folder)
    assert found.weight_format == "bin" and found.dtype == "BF16"
    assert found.weight_bytes == 26 and found.parameter_count is None and found.tensors == ()


def test_safetensors_win_over_bin(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"x")
    assert checkpoint.read(folder).weight_format == "safetensors"


@pytest.mark.parametrize("model", ["stories", "example"])
def test_real_checkpoints(model: str, request: pytest.FixtureRequest) -> None:
    from safetensors import safe_open

    found = checkpoint.read(request.getfixturevalue(model))
    checkpoint.require_convertible(found)
    with safe_open(found.weight_files[0], framework="np") as theirs:
        assert {tensor.name: (tensor.dtype, tensor.shape) for tensor in found.tensors} == {
            name: (part.get_dtype(), tuple(part.get_shape()))
            for name, part in ((name, theirs.get_slice(name)) for name in theirs.keys())  # noqa: SIM118
        }


# --- what is refused -------------------------------------------------------------------------------------


def edit_json(name: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        value = json.loads((folder / name).read_text(encoding="utf-8"))
        change(value)
        write_json(folder / name, value)

    return edit


def replace(name: str, raw: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_bytes(raw)

    return write


def append(name: str, raw: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        with (folder / name).open("ab") as stream:
            stream.write(raw)

    return write


def remove(*patterns: str) -> Callable[[Path], None]:
    def go(folder: Path) -> None:
        for pattern in patterns:
            for file in folder.glob(pattern):
                file.unlink()

    return go


def header_of(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Rewrite the second shard's header and keep its data."""

    def edit(folder: Path) -> None:
        file = folder / SHARD
        raw = file.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])

    return edit


def head(**fields: Any) -> Callable[[Path], None]:
    """Change what the second shard's header says of ``lm_head.weight``."""
    return header_of(lambda header: header[HEAD].update(fields))


def cut(name: str, keep: int) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        raw = (folder / name).read_bytes()
        (folder / name).write_bytes(raw[:keep])

    return edit


def only(**files: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        remove("*")(folder)
        for name, text in files.items():
            (folder / name.replace("__", ".")).write_text(text, encoding="utf-8")

    return edit


def both_shards_alike(folder: Path) -> None:
    remove("model.safetensors.index.json")(folder)
    shutil.copy(folder / SHARD, folder / "model-00001-of-00002.safetensors")


SHARD = "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
HEAD = "lm_head.weight"
EMPTY = struct.pack("<Q", 2) + b"{}"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
BROKEN: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "nothing in it": (only(), ["config.json is missing", "It holds no files"]),
    "other files": (only(a__txt="a", b__txt="b"), ["config.json is missing", "a.txt, b.txt"]),
    "no config": (remove("config.json"), ["config.json is missing"]),
    "only GGUF": (only(**{"m-Q8_0__gguf": "x"}), ["GGUF files, not a checkpoint", "m-Q8_0.gguf"]),
    "only an adapter": (
        only(adapter_config__json='{"base_model_name_or_path": "org/base"}', adapter_model__safetensors="x"),
        ["LoRA adapter", "'org/base'", "merge_and_unload"],
    ),
    "an adapter with a config": (
        only(config__json=json.dumps(CONFIG), adapter_config__json="{}", adapter_model__bin="x"),
        ["LoRA adapter", "does not name"],
    ),
    "config is empty": (replace("config.json", b""), ["config.json is damaged", "It is empty"]),
    "config is no JSON": (replace("config.json", b"{architectures"), ["config.json is damaged", "not JSON"]),
    "config is cut short": (cut("config.json", 30), ["config.json is damaged", "not JSON"]),
    "config is no text": (replace("config.json", b"\xff\xfe\x00"), ["config.json is damaged", "not JSON"]),
    "config is a list": (replace("config.json", b"[]"), ["config.json is damaged", "not an object"]),
    "config is a deep nest": (replace("config.json", b'{"a":' * 99_999), ["config.json is damaged"]),
    "config is a web page": (replace("config.json", b"<!DOCTYPE html>"), ["config.json is damaged"]),
    "config is an LFS pointer": (replace("config.json", POINTER), ["pointer of Git LFS", "git lfs pull"]),
    "no architectures": (
        edit_json("config.json", lambda config: config.pop("architectures")),
        ["does not say of which architecture", "null", "LlamaForCausalLM"],
    ),
    "architectures are empty": (
        edit_json("config.json", lambda config: config.update(architectures=[])), ["architecture", "[]"],
    ),
    "architectures are numbers": (
        edit_json("config.json", lambda config: config.update(architectures=[7])), ["architecture", "[7]"],
    ),
    "no weights": (remove("model*"), ["model.safetensors is missing"]),
    "weights under another name": (
        lambda folder: (remove("model*")(folder), (folder / "weights.safetensors").write_bytes(b"x")),
        ["weights.safetensors", "save_pretrained"],
    ),
    "a shard is missing": (remove(SHARD), ["1 of 2 weight files", SHARD]),
    "a shard is missing, without an index": (remove(SHARD, INDEX), ["1 of 2 weight files", SHARD]),
    "index is no JSON": (replace(INDEX, b"{"), [INDEX, "not JSON"]),
    "index without a map": (replace(INDEX, b"{}"), [INDEX, "no weight_map"]),
    "index with an empty map": (replace(INDEX, b'{"weight_map": {}}'), [INDEX, "no weight_map"]),
    "index leads out of the folder": (
        edit_json(INDEX, lambda index: index["weight_map"].update({HEAD: "../../etc/model.safetensors"})),
        [INDEX, "'../../etc/model.safetensors'", "beside it"],
    ),
    "index leads to an absolute path": (
        edit_json(INDEX, lambda index: index["weight_map"].update({HEAD: "/etc/model.safetensors"})),
        [INDEX, "'/etc/model.safetensors'"],
    ),
    "index leads through a backslash": (
        edit_json(INDEX, lambda index: index["weight_map"].update({HEAD: "..\\model.safetensors"})), [INDEX],
    ),
    "index with a zero byte": (
        edit_json(INDEX, lambda index: index["weight_map"].update({HEAD: "a\0.safetensors"})), [INDEX],
    ),
    "index leads to a pickle": (
        edit_json(INDEX, lambda index: index["weight_map"].update({HEAD: "pytorch_model.bin"})), [INDEX],
    ),
    "index leads to a number": (
        edit_json(INDEX, lambda index: index["weight_map"].update({HEAD: 5})), [INDEX, "'5'"],
    ),
    "index names a tensor that is not there": (
        edit_json(INDEX, lambda index: index["weight_map"].update(ghost=SHARD)), [SHARD, "'ghost'"],
    ),
    "index does not name a tensor": (
        edit_json(INDEX, lambda index: index["weight_map"].pop(HEAD)), [SHARD, HEAD, "index does not name"],
    ),
    "index names the wrong shard": (
        edit_json(INDEX, lambda index: index["weight_map"].update({HEAD: SHARD.replace("2-", "1-")})), [HEAD],
    ),
    "a tensor twice": (both_shards_alike, [SHARD, "too"]),
    "weights are empty": (replace(SHARD, b""), [SHARD, "truncated", "has 0"]),
    "weights are cut in the length": (cut(SHARD, 5), [SHARD, "truncated"]),
    "weights are cut in the header": (cut(SHARD, 40), [SHARD, "truncated", "has 40"]),
    "weights are cut in the data": (cut(SHARD, -100), [SHARD, "truncated", "should have", "bytes and has"]),
    "weights are an LFS pointer": (replace(SHARD, POINTER), [SHARD, "pointer of Git LFS"]),
    "weights are a web page": (replace(SHARD, b"<!DOCTYPE html>" * 9), [SHARD, "truncated"]),
    "weights have more at the end": (
        append(SHARD, b"more"), [SHARD, "4 bytes after its last tensor"],
    ),
    "header length lies": (replace(SHARD, struct.pack("<Q", 1 << 62) + b"{}"), [SHARD, "truncated"]),
    "header is no JSON": (replace(SHARD, EMPTY[:8] + b"{{"), [SHARD, "not JSON"]),
    "header is a list": (replace(SHARD, EMPTY[:8] + b"[]"), [SHARD, "not an object"]),
    "header holds nothing": (
        lambda folder: (remove("model*")(folder), replace("model.safetensors", EMPTY)(folder)),
        ["holds no tensors"],
    ),
    "an entry is a number": (header_of(lambda header: header.update({HEAD: 1})), [HEAD, "dtype, a shape"]),
    "an entry without shape": (header_of(lambda header: header[HEAD].pop("shape")), [HEAD, "dtype, a shape"]),
    "an unknown dtype": (head(dtype="F7"), [HEAD, "unknown type 'F7'"]),
    "a shape that is absurd": (
        head(shape=[1 << 62, 1 << 62]), [HEAD, "does not fill"],
    ),
    "a shape beyond 64 bits": (head(shape=[1 << 64]), [HEAD, "a shape"]),
    "a negative shape": (head(shape=[-32, -8]), [HEAD, "a shape"]),
    "a shape of floats": (head(shape=[32.0, 8]), [HEAD, "a shape"]),
    "a shape without end": (head(shape=[1] * 99), [HEAD, "does not fill"]),
    "three offsets": (head(data_offsets=[0, 1, 2]), [HEAD, "offsets"]),
    "offsets that run backwards": (
        head(data_offsets=[512, 0]), [HEAD, "does not fill"],
    ),
    "tensors that overlap": (
        head(data_offsets=[0, 512]), ["begins at byte"],
    ),
    "tensors with a gap": (
        head(data_offsets=[1 << 20, (1 << 20) + 512]), ["begins at byte"],
    ),
    "tokenizer is empty": (replace("tokenizer.json", b""), ["tokenizer.json is damaged", "It is empty"]),
    "tokenizer.model is empty": (replace("tokenizer.model", b""), ["tokenizer.model is", "It is empty"]),
    "tokenizer is cut short": (
        replace("tokenizer.json", b'{"model": {"vocab": {"a": 1, "b'), ["tokenizer.json", "not a whole"],
    ),
    "tokenizer is an LFS pointer": (replace("tokenizer.json", POINTER), ["pointer of Git LFS"]),
    "tokenizer_config is no JSON": (
        replace("tokenizer_config.json", b"{'a': 1}"), ["tokenizer_config.json is damaged"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "words"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_folders_are_refused_with_words(
    folder: Path, spoil: Callable[[Path], Any], words: list[str]
) -> None:
    spoil(folder)
    with pytest.raises(CheckpointProblem) as raised:
        checkpoint.read(folder)
    problem = raised.value
    assert str(folder) in problem.what and problem.why and problem.next_step
    for word in words:
        assert word in str(problem)


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointProblem, match="There is no folder"):
        checkpoint.read(tmp_path / "absent")
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(CheckpointProblem, match="is not a folder"):
        checkpoint.read(tmp_path / "file")


@pytest.mark.parametrize("method", ["awq", "bitsandbytes", "hqq"])
def test_bin_weights_of_a_quantization_that_the_converter_refuses(folder: Path, method: str) -> None:
    """Of a pickle only the config can speak, before it is opened."""
    write_json(folder / "config.json", CONFIG | {"quantization_config": {"quant_method": method}})
    for file in folder.glob("model*"):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x" * 64)
    found = checkpoint.read(folder)
    assert found.quantization == method
    with pytest.raises(CheckpointProblem, match=f"quantized with '{method}'") as raised:
        checkpoint.require_convertible(found)
    assert "gptq" in raised.value.why


def test_a_folder_without_a_tokenizer_is_read_but_not_converted(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    found = checkpoint.read(folder)
    with pytest.raises(CheckpointProblem, match="has no tokenizer"):
        checkpoint.require_convertible(found)
    (folder / "qwen.tiktoken").write_bytes(b"IQ== 0\n")
    checkpoint.require_convertible(checkpoint.read(folder))


def test_links_into_the_hub_cache_are_followed(folder: Path, tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    (folder / SHARD).rename(blob)
    (folder / SHARD).symlink_to(blob)
    assert len(checkpoint.read(folder).tensors) == len(TENSORS)


@pytest.mark.slow
@pytest.mark.parametrize("name", [INDEX, SHARD])
def test_mutated_headers_are_read_or_refused_and_cost_no_memory(folder: Path, name: str) -> None:
    whole, outcomes = (folder / name).read_bytes(), Counter[str]()
    end = len(whole) if name == INDEX else 8 + int.from_bytes(whole[:8], "little")

    @given(mutants(whole, end, [b"9", b"99999999999", b"\xff" * 8, b"", b"[", b"\\"]))
    def try_one(raw: bytes) -> None:
        (folder / name).write_bytes(raw)
        try:
            with little_memory():
                found = checkpoint.read(folder)
            assert found.parameter_count and found.dtype
            outcomes["read"] += 1
        except CheckpointProblem as problem:
            assert problem.next_step
            outcomes["refused"] += 1

    tracemalloc.start()
    try:
        try_one()
    finally:
        tracemalloc.stop()
    assert outcomes["refused"] > 100, outcomes


@pytest.mark.tool
def test_the_readable_quantizations_are_the_converters_own(toolchain: Any) -> None:
    import re

    sources = toolchain.converter.parent / "conversion"
    read = set()
    for name in ("base.py", "gpt_oss.py"):
        read |= set(re.findall(r'quant_method == "([\w-]+)"', (sources / name).read_text(encoding="utf-8")))
    assert read == set(storage.READABLE_QUANTIZATIONS)

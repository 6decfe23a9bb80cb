"""GGUF files: real ones are read, described and predicted; hostile ones are refused with words."""

from __future__ import annotations

import ctypes
import re
import struct
import subprocess
import time
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from mutants import little_memory, mutants
from shared import Store

from ggq.errors import GgufProblem
from ggq.gguf import file as gguf_file
from ggq.gguf import header as gguf_header
from ggq.gguf import names as gguf_names
from ggq.gguf import tensor_types
from ggq.gguf.file import read, read_all, shards
from ggq.gguf.names import FileName, parse_name
from ggq.gguf.size import predicted_bytes
from ggq.gguf.values import Scan, scan_values
from ggq.llamacpp.toolchain import Toolchain


def write_gguf(path: Path, tensors: dict[str, np.ndarray[Any, Any]] | None = None, tokens: int = 6) -> Path:
    """A small GGUF of every kind of entry, written by gguf-py."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny")
    writer.add_license("mit")
    writer.add_base_model_count(1)
    writer.add_base_model_repo_url(0, "https://example.org/base")
    writer.add_context_length(128)
    writer.add_block_count(1)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_rope_freq_base(10000.0)
    writer.add_bool("llama.flag", True)
    writer.add_int64("llama.negative", -5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([f"token {index} 한글" for index in range(tokens)])
    writer.add_token_scores([index / 2 for index in range(tokens)])
    writer.add_token_types([1] * tokens)
    writer.add_chat_template("{{ messages }}")
    default = {
        "token_embd.weight": np.arange(6 * 256, dtype=np.float16).reshape(6, 256),
        "blk.0.attn_q.weight": np.ones((256, 256), dtype=np.float16),
        "blk.0.attn_norm.weight": np.ones(256, dtype=np.float32),
        "blk.0.ffn_gate_exps.weight": np.ones((2, 3, 256), dtype=np.float32),
        "blk.0.odd.weight": np.ones((3, 5), dtype=np.float32),
    }
    for name, data in (default if tensors is None else tensors).items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "Tiny-F16.gguf")


def test_what_it_says_of_itself(tiny: Path) -> None:
    found = read(tiny)
    assert found.version == 3 and found.alignment == 32 and found.path == tiny
    assert found.architecture == "llama" and found.name == "Tiny"
    assert found.license == "mit" and found.base_model == "https://example.org/base"
    assert found.context_length == 128 and found.block_count == 1 and found.expert_count == 0
    assert found.file_type == "F16" and found.tokenizer == "gpt2/qwen2" and found.has_chat_template
    assert found.vocabulary_size == 6
    assert found.metadata["llama.flag"] is True and found.metadata["llama.negative"] == -5
    tokens = found.metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, gguf_header.Array)
    assert tokens[1] == "token 1 한글" and list(tokens[4:]) == ["token 4 한글", "token 5 한글"]
    assert list(found.metadata["tokenizer.ggml.scores"]) == [0, 0.5, 1, 1.5, 2, 2.5]
    assert found.parameter_count == 6 * 256 + 256 * 256 + 256 + 6 * 256 + 15
    assert found.types == {"F16": 2, "F32": 3}
    assert found.bits_per_weight == pytest.approx(8 * found.tensor_bytes / found.parameter_count)
    assert found.file_bytes == tiny.stat().st_size


def test_tensors_agree_with_gguf_py(tiny: Path) -> None:
    theirs = gguf.GGUFReader(tiny).tensors
    ours = read(tiny).tensors
    assert [(t.name, t.shape, t.type, t.offset_bytes, t.data_bytes) for t in ours] == [
        (t.name, tuple(t.shape.tolist()), t.tensor_type.name, t.data_offset, t.n_bytes) for t in theirs
    ]
    assert [t.group for t in ours] == ["embeddings", "attention", "norms", "experts", "other"]


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("output.weight", "output"),
        ("output_norm.weight", "norms"),
        ("blk.3.attn_q_norm.weight", "norms"),
        ("blk.3.ffn_norm.weight", "norms"),
        ("blk.3.ffn_down.weight", "ffn"),
        ("blk.3.ffn_down_exps.weight", "experts"),
        ("blk.3.ffn_up_shexp.weight", "experts"),
        ("blk.3.ffn_gate_inp.weight", "experts"),
        ("blk.3.exp_probs_b.bias", "experts"),
        ("blk.3.ssm_in.weight", "attention"),
        ("per_layer_token_embd.weight", "embeddings"),
        ("token_embd_norm.weight", "norms"),
        ("rope_freqs.weight", "other"),
    ],
)
def test_groups(name: str, group: str) -> None:
    assert gguf_header.tensor_group(name) == group


def test_a_large_vocabulary_is_read_quickly(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "large.gguf", {}, tokens=262_144)
    tensor_types.by_number()
    start = time.process_time()
    found = read(path)
    assert time.process_time() - start < 0.5
    assert found.vocabulary_size == 262_144


# --- what is refused -------------------------------------------------------------------------------------


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def info(name: str = "t", shape: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}qIQ", len(shape), *shape, kind, offset)


def header(entries: list[bytes], infos: list[bytes], data: bytes = b"", alignment: int = 32) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(entries)) + b"".join(entries) + b"".join(infos)
    return head + b"\0" * (-len(head) % alignment) + data


START = b"GGUF" + struct.pack("<I", 3)
HOSTILE = {
    "empty": (b"", "It is empty"),
    "too short": (b"GG", "is not a GGUF"),
    "another format": (b"PK\x03\x04" + b"\0" * 60, "is not a GGUF"),
    "a web page": (b"<!DOCTYPE html>", "is not a GGUF"),
    "only magic": (b"GGUF", "truncated"),
    "version 1": (b"GGUF" + struct.pack("<III", 1, 0, 0), "version 1"),
    "version 0": (b"GGUF" + struct.pack("<IQQ", 0, 0, 0), "version 0"),
    "version 4": (b"GGUF" + struct.pack("<IQQ", 4, 0, 0), "3 is the newest"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "tensors without end": (START + struct.pack("<QQ", 1 << 60, 0), "1,152,921,504,606,846,976 tensors"),
    "entries without end": (START + struct.pack("<QQ", 0, 1 << 63), "metadata entries"),
    "more entries than there are": (START + struct.pack("<QQ", 0, 3), "truncated"),
    "a key without end": (START + struct.pack("<QQQ", 0, 1, 1 << 40), "metadata key"),
    "an empty key": (header([entry("", 4, b"\1\0\0\0")], []), "key is empty"),
    "a NUL in a key": (header([entry("a\0b", 4, b"\1\0\0\0")], []), "NUL"),
    "a NUL in a tensor's name": (header([], [info("a\0b")], bytes(32)), "NUL"),
    "a key twice": (header([entry("a", 4, b"\1\0\0\0")] * 2, []), "twice"),
    "a key that is not text": (header([text(b"\xff\xfe") + struct.pack("<II", 4, 1)], []), "not text"),
    "an unknown type": (header([entry("a", 99, b"")], []), "unknown type 99"),
    "a text without end": (header([entry("a", 8, struct.pack("<Q", 1 << 62))], []), "truncated"),
    "an array without end": (header([entry("a", 9, struct.pack("<IQ", 4, 1 << 61))], []), "truncated"),
    "texts without end": (header([entry("a", 9, struct.pack("<IQ", 8, 1 << 59))], []), "truncated"),
    "a text in an array without end": (
        header([entry("a", 9, struct.pack("<IQQ", 8, 1, 1 << 63))], []), "truncated",
    ),
    "an array of arrays": (header([entry("a", 9, struct.pack("<IQ", 9, 1))], []), "unknown type 9"),
    "alignment 0": (header([entry("general.alignment", 4, struct.pack("<I", 0))], []), "power of two"),
    "alignment 48": (header([entry("general.alignment", 4, struct.pack("<I", 48))], []), "power of two"),
    "alignment as text": (header([entry("general.alignment", 8, text("32"))], []), "power of two"),
    "alignment as bool": (header([entry("general.alignment", 7, b"\1")], []), "power of two"),
    "a tensor's name too long": (header([], [info("n" * 64)], bytes(16)), "64 bytes"),
    "a tensor twice": (header([], [info(), info(offset=32)], bytes(64)), "twice"),
    "too many dimensions": (header([], [info(shape=(1,) * 5)], bytes(16)), "5 dimensions"),
    "dimensions without end": (header([], [text("t") + struct.pack("<I", 1 << 31)], bytes(64)), "dimensions"),
    "a negative dimension": (header([], [info(shape=(-4,))], bytes(16)), "cannot have the shape"),
    "a product that overflows": (header([], [info(shape=(1 << 32,) * 2)], bytes(16)), "cannot have"),
    "overflow behind a zero": (header([], [info(shape=(1 << 62, 4, 0))], bytes(16)), "cannot have the shape"),
    "an unknown tensor type": (header([], [info(kind=777)], bytes(16)), "type 777"),
    "a removed tensor type": (header([], [info(kind=4)], bytes(16)), "type 4"),
    "rows that blocks do not divide": (header([], [info(shape=(100,), kind=12)], bytes(144)), "cannot have"),
    "an offset that is wrong": (header([], [info(offset=32)], bytes(64)), "is at byte 32"),
    "an offset that overflows": (header([], [info(offset=(1 << 64) - 32)], bytes(64)), "is at byte"),
    "tensors that overlap": (header([], [info(), info("u", offset=0)], bytes(64)), "is at byte 0"),
    "no data": (header([], [info()]), "truncated"),
    "data cut short": (header([], [info(shape=(1 << 30,))], bytes(16)), "ends at byte"),
}  # fmt: skip


@pytest.mark.parametrize(("raw", "words"), HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_files_are_refused_with_words(tmp_path: Path, raw: bytes, words: str) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(raw)
    with pytest.raises(GgufProblem, match=words) as raised:
        read(path)
    assert str(path) in raised.value.what and raised.value.next_step


def test_the_table_above_is_made_of_otherwise_good_files(tmp_path: Path) -> None:
    path = tmp_path / "good.gguf"
    path.write_bytes(header([entry("a", 4, b"\1\0\0\0")], [info(), info("u", offset=32)], bytes(48)))
    assert [tensor.name for tensor in read(path).tensors] == ["t", "u"]


def test_a_header_that_would_fill_memory_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "hole.gguf"
    start = START + struct.pack("<QQ", 0, 1) + text("a") + struct.pack("<IIQ", 9, 0, 1 << 33)
    with path.open("wb") as stream:
        stream.write(start)
        stream.truncate(len(start) + (1 << 33))
    tracemalloc.start()
    with pytest.raises(GgufProblem, match="larger than"):
        read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 << 20


def test_files_that_are_not_there_or_not_files(tmp_path: Path) -> None:
    with pytest.raises(GgufProblem, match="cannot be read"):
        read(tmp_path / "absent.gguf")
    with pytest.raises(GgufProblem, match="is a folder") as raised:
        read(tmp_path)
    assert "ggq convert" in raised.value.next_step


POWERS = [struct.pack("<Q", 1 << power) for power in range(64)]


@pytest.mark.slow
def test_mutated_headers_are_read_or_refused_and_cost_no_memory(tiny: Path, tmp_path: Path) -> None:
    path, outcomes = tmp_path / "mutant.gguf", Counter[str]()

    @given(
        mutants(tiny.read_bytes(), read(tiny).header_bytes, [b"\xff", b"\xff" * 8, b"\0" * 8, b"", *POWERS])
    )
    def try_one(raw: bytes) -> None:
        path.write_bytes(raw)
        try:
            with little_memory():
                found = read(path)
                for value in found.metadata.values():
                    if isinstance(value, gguf_header.Array):
                        list(value)
            assert found.types is not None and found.file_type != ""
            outcomes["read"] += 1
        except GgufProblem:
            outcomes["refused"] += 1

    tracemalloc.start()
    try:
        try_one()
    finally:
        tracemalloc.stop()
    assert outcomes["read"] > 0 and outcomes["refused"] > 50, outcomes


# --- shards ----------------------------------------------------------------------------------------------


def write_shards(folder: Path) -> list[Path]:
    data = np.ones((256, 256), dtype=np.float32)
    writer = gguf.GGUFWriter(folder / "Tiny-F32.gguf", "llama", split_max_tensors=2)
    for index in range(5):
        writer.add_tensor(f"blk.{index}.attn_q.weight", data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.glob("Tiny-F32-*.gguf"))


def test_shards_are_read_as_one_from_any_of_them(tmp_path: Path) -> None:
    files = write_shards(tmp_path)
    assert [file.name for file in files] == [f"Tiny-F32-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    for file in files:
        assert shards(file) == files
        whole = read_all(file)
        assert whole.paths == tuple(files) and len(whole.tensors) == 5
        assert whole.file_bytes == sum(file.stat().st_size for file in files)
        assert whole.architecture == "llama"
    assert {tensor.path for tensor in whole.tensors} == set(files)
    assert scan_values(whole) == Scan(())


def test_shards_that_are_missing_or_mixed_up(tmp_path: Path) -> None:
    files = write_shards(tmp_path)
    files[1].rename(tmp_path / "elsewhere")
    with pytest.raises(GgufProblem, match=r"1 of the 3 shards.*00002-of-00003"):
        read_all(files[0])
    files[1].write_bytes(files[2].read_bytes())
    with pytest.raises(GgufProblem, match="shard 3 of 3, under another name"):
        read_all(files[0])
    write_gguf(files[1], {"another": np.ones(4, dtype=np.float32)})
    with pytest.raises(GgufProblem, match="has the name of a shard, and is none"):
        read_all(files[0])
    with pytest.raises(GgufProblem, match="number 4 of 3"):
        shards(tmp_path / "Tiny-F32-00004-of-00003.gguf")


# --- values ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_found(tmp_path: Path, dtype: Any, value: float) -> None:
    bad = np.ones((4096, 32), dtype=dtype)
    bad[0, 3] = value
    path = write_gguf(tmp_path / "bad.gguf", {"good": np.full((8, 32), 60000, dtype=dtype), "bad": bad})
    assert scan_values(read(path)) == Scan(("bad",))


def test_a_sample_may_miss_what_the_full_scan_finds(tmp_path: Path) -> None:
    data = np.ones((4096, 32), dtype=np.float32)
    data[5, 3] = np.nan
    path = write_gguf(tmp_path / "bad.gguf", {"t": data})
    steps: list[float] = []
    assert scan_values(read(path)) == Scan(())
    found = scan_values(read(path), full=True, listener=lambda event: steps.append(event.done))  # type: ignore[union-attr]
    assert found == Scan(("t",))
    assert steps == [data.nbytes]


def test_bfloat16_and_quantized_tensors(tmp_path: Path) -> None:
    floats = np.ones((64, 256), dtype=np.float32)
    writer = gguf.GGUFWriter(tmp_path / "q.gguf", "llama")
    for kind in (gguf.GGMLQuantizationType.BF16, gguf.GGMLQuantizationType.Q8_0):
        raw = gguf.quantize(floats, kind)
        writer.add_tensor(f"good.{kind.name}", raw.copy(), raw_dtype=kind)
        # The high byte of a float that becomes infinite or no number; in Q8_0 that float is a block's scale.
        raw.view(np.uint8)[7, 1] = 0x7F
        writer.add_tensor(f"bad.{kind.name}", raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read(tmp_path / "q.gguf")
    for full in (False, True):
        assert scan_values(found, full=full) == Scan(("bad.BF16", "bad.Q8_0"))


def test_types_that_nobody_can_read_are_named_and_integers_are_finite(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "q.gguf", "llama")
    kind = gguf.GGMLQuantizationType.Q8_1
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    writer.add_tensor("t", np.full((2, 2 * block_bytes), 0xFF, np.uint8), raw_dtype=kind)
    writer.add_tensor("ids", np.full((2, block), -1, np.int32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for full in (False, True):
        assert scan_values(read(tmp_path / "q.gguf"), full=full) == Scan((), ("t",))


# --- names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Qwen3-0.6B-Q4_K_M.gguf", FileName("Qwen3-0.6B", "Q4_K_M")),
        ("qwen2.5-7b-instruct-q4_0.gguf", FileName("qwen2.5-7b-instruct", "Q4_0")),
        ("Meta-Llama-3-8B-Instruct.Q8_0.gguf", FileName("Meta-Llama-3-8B-Instruct", "Q8_0")),
        ("llama-2-7b-chat.ggmlv3.q4_K_S.gguf", FileName("llama-2-7b-chat.ggmlv3", "Q4_K_S")),
        ("Foo.i1-IQ2_XXS.gguf", FileName("Foo.i1", "IQ2_XXS")),
        ("Foo-IQ4_NL.gguf", FileName("Foo", "IQ4_NL")),
        ("Foo-IQ3_M.GGUF", FileName("Foo", "IQ3_M")),
        ("Foo-UD-Q4_K_XL.gguf", FileName("Foo", "UD-Q4_K_XL")),
        ("Foo-Q4_0_4_8.gguf", FileName("Foo", "Q4_0_4_8")),
        ("Foo-TQ1_0.gguf", FileName("Foo", "TQ1_0")),
        ("gpt-oss-20b-MXFP4.gguf", FileName("gpt-oss-20b", "MXFP4")),
        ("Foo-fp16.gguf", FileName("Foo", "F16")),
        ("Foo-BF16.gguf", FileName("Foo", "BF16")),
        ("mmproj-Foo-f16.gguf", FileName("mmproj-Foo", "F16")),
        ("ggml-model-Q6_K.gguf", FileName("ggml-model", "Q6_K")),
        ("Foo-Q4_K_M-00002-of-00009.gguf", FileName("Foo", "Q4_K_M", 2)),
        ("Foo-00001-of-00002.gguf", FileName("Foo", None, 1)),
        ("Foo.gguf", FileName("Foo", None)),
        ("Q4_K_M.gguf", FileName("Q4_K_M", None)),
        ("한국어 모델-Q4_K_M.gguf", FileName("한국어 모델", "Q4_K_M")),
    ],
)
def test_names_are_read_leniently(name: str, expected: FileName) -> None:
    assert parse_name(name) == expected


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("Qwen3-0.6B", "Qwen3-0.6B-Q4_K_M.gguf"),
        ("Qwen/Qwen3-0.6B", "Qwen3-0.6B-Q4_K_M.gguf"),
        ("My model: v2", "My-model-v2-Q4_K_M.gguf"),
        ("../..", "model-Q4_K_M.gguf"),
        ("한국어", "한국어-Q4_K_M.gguf"),
    ],
)
def test_names_of_outputs(model: str, expected: str) -> None:
    assert gguf_names.output_name(model, "Q4_K_M") == expected
    assert parse_name(expected).type == "Q4_K_M"
    assert gguf_names.shard_name(expected[:-5], 1, 9) == f"{expected[:-5]}-00001-of-00009.gguf"


# --- against the real tools ------------------------------------------------------------------------------


def run_tool(toolchain: Toolchain, name: str, *arguments: str | Path) -> None:
    subprocess.run([toolchain.tool(name), *arguments], capture_output=True, check=True)


def types_of(found: gguf_file.GgufFile) -> dict[str, str]:
    return {tensor.name: tensor.type for tensor in found.tensors}


def check_predictions(toolchain: Toolchain, base: gguf_file.GgufFile, output: Path) -> None:
    for ftype in ("Q2_K", "Q4_K_M", "Q6_K", "Q8_0", "Q5_0", "IQ4_XS", "Q2_0", "F32", "F16"):
        run_tool(toolchain, "llama-quantize", base.path, output, ftype, "2")
        made = read(output)
        assert predicted_bytes(base, types_of(made)) == made.file_bytes, ftype
        assert made.file_type == ftype
        assert made.parameter_count == base.parameter_count
        seen = scan_values(made, full=True)
        assert not seen.not_finite and bool(seen.unread) == (ftype == "Q2_0")


@pytest.mark.tool
def test_predicted_bytes_are_llama_quantizes_own(
    toolchain: Toolchain, base_gguf: Path, tmp_path: Path
) -> None:
    check_predictions(toolchain, read(base_gguf), tmp_path / "out.gguf")


@pytest.mark.tool
def test_predicted_bytes_where_most_tensors_fall_back(
    toolchain: Toolchain, stories: Path, store: Store, tmp_path: Path
) -> None:
    base = store.converted(toolchain, stories, "f16")
    check_predictions(toolchain, read(base), tmp_path / "out.gguf")


@pytest.mark.tool
def test_predicted_bytes_of_shards(toolchain: Toolchain, base_gguf: Path, tmp_path: Path) -> None:
    run_tool(toolchain, "llama-gguf-split", "--split-max-tensors", "5", base_gguf, tmp_path / "part")
    split = read_all(next(tmp_path.glob("part-00001-of-*.gguf")))
    assert len(split.paths) > 2

    run_tool(toolchain, "llama-quantize", split.path, tmp_path / "merged.gguf", "Q4_K_M", "2")
    merged = read(tmp_path / "merged.gguf")
    types = types_of(merged)
    assert predicted_bytes(split, types) == predicted_bytes(read(base_gguf), types) == merged.file_bytes

    run_tool(toolchain, "llama-quantize", "--keep-split", split.path, tmp_path / "kept", "Q4_K_M", "2")
    kept = read_all(next(tmp_path.glob("kept-00001-of-*.gguf")))
    assert predicted_bytes(split, types, keep_split=True) == kept.file_bytes


@pytest.mark.tool
def test_predicted_bytes_with_more_metadata(toolchain: Toolchain, base_gguf: Path, tmp_path: Path) -> None:
    added: dict[str, gguf_header.Scalar] = {
        "general.name": "Another name", "a.text": "t" * 77, "a.int": 7, "a.float": 0.5, "a.bool": True,
    }  # fmt: skip
    options = ["general.name=str:Another name", f"a.text=str:{'t' * 77}", "a.int=int:7", "a.float=float:0.5"]
    overrides = [part for option in (*options, "a.bool=bool:true") for part in ("--override-kv", option)]
    run_tool(toolchain, "llama-quantize", *overrides, base_gguf, tmp_path / "more.gguf", "Q8_0", "2")
    more = read(tmp_path / "more.gguf")
    assert {key: more.metadata[key] for key in added} == added
    assert predicted_bytes(read(base_gguf), types_of(more), added) == more.file_bytes


@pytest.mark.tool
def test_predicted_bytes_of_texts_with_a_zero_byte(
    toolchain: Toolchain, base_gguf: Path, tmp_path: Path
) -> None:
    """llama.cpp copies texts up to their first zero byte: its output is shorter by the rest."""
    raw = base_gguf.read_bytes()
    position = raw.index("▁the".encode())
    base = tmp_path / "base.gguf"
    base.write_bytes(raw[: position + 3] + b"\0" + raw[position + 4 :])
    run_tool(toolchain, "llama-quantize", base, tmp_path / "out.gguf", "Q8_0", "1")
    made = read(tmp_path / "out.gguf")
    assert predicted_bytes(read(base), types_of(made)) == made.file_bytes


def test_a_type_that_a_tensor_cannot_take(tiny: Path) -> None:
    with pytest.raises(GgufProblem, match="blocks of 256 do not divide"):
        predicted_bytes(read(tiny), {"blk.0.odd.weight": "Q4_K"})
    with pytest.raises(GgufProblem, match="no such type"):
        predicted_bytes(read(tiny), {"blk.0.odd.weight": "Q9"})


@pytest.mark.tool
def test_every_tensor_type_of_the_toolchain_is_known(toolchain: Toolchain) -> None:
    library = ctypes.CDLL(str(next(toolchain.lib_dir.glob("libggml-base.*"))))
    library.ggml_type_size.restype = ctypes.c_size_t
    library.ggml_blck_size.restype = ctypes.c_int64
    library.ggml_type_name.restype = ctypes.c_char_p
    for number, kind in tensor_types.by_number().items():
        name = library.ggml_type_name(number).decode().upper()
        theirs = (name, library.ggml_blck_size(number), library.ggml_type_size(number))
        assert theirs == (kind.name, kind.block_weights, kind.block_bytes)
    words = (toolchain.converter.parent / "ggml" / "include" / "ggml.h").read_text(encoding="utf-8")
    numbers = {int(number) for number in re.findall(r"^ +GGML_TYPE_\w+ += (\d+),", words, re.MULTILINE)}
    assert set(tensor_types.by_number()) == numbers - {max(numbers)}, "the last one is GGML_TYPE_COUNT"


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "model.gguf")
    with pytest.raises(GgufProblem, match="pipe"):
        read(tmp_path / "model.gguf")

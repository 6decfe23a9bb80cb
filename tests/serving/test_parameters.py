"""How a file is run here: the longest context that fits, never against what was typed."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from hubserver import HubServer
from shared import Store

from benchmarks.common import random_llama
from ggq.errors import DoesNotFit, GgufProblem, UsageProblem
from ggq.estimation.placement import Room
from ggq.gguf import file as gguf_file
from ggq.llamacpp.offload import parse_layers
from ggq.llamacpp.toolchain import Toolchain
from ggq.llamacpp.words import CacheType
from ggq.operations.ready import ready
from ggq.serving import parameters, places
from ggq.serving.parameters import choose
from ggq.serving.settings import Fit, LoadSettings, Use
from ggq.session import Session

MIB = 1 << 20
PLENTY = Room(64 << 30)


@pytest.fixture(scope="module")
def deep(toolchain: Toolchain, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 layers, so that the cache of 8,192 tokens is 192 MiB, and the weights a tenth of it."""
    folder = tmp_path_factory.mktemp("deep") / "deep-llama"
    random_llama(folder, width=256, ffn=256, layers=24, heads=4, context=8192)
    return store.converted(toolchain, folder, "bf16", by_hand=True)


def needs(toolchain: Toolchain, model: Path, context: int, cache: CacheType = CacheType.F16) -> int:
    """RAM by llama.cpp's account."""
    settings = LoadSettings(context_tokens=context, type_k=cache)
    return choose(toolchain, model, settings, room=PLENTY).memory.ram_bytes


def test_with_room_it_is_the_trained_context(toolchain: Toolchain, chat_gguf: Path) -> None:
    found = choose(toolchain, chat_gguf, room=PLENTY)
    load = found.serving.load
    assert (load.context_tokens, load.type_k, load.type_v) == (512, "f16", "f16")
    assert found.use is Use.TEXT and found.serving.threads and found.serving.load.offload.n_gpu_layers == 0


def test_less_room_first_costs_context_then_the_cache_and_then_it_is_refused(
    toolchain: Toolchain, deep: Path
) -> None:
    whole, half, least = (needs(toolchain, deep, it) for it in (8192, 4096, 512))
    assert whole - half > 64 * MIB, "the cache is not what it should be"
    assert choose(toolchain, deep, room=Room(whole + 8 * MIB)).context_tokens == 8192
    tight = choose(toolchain, deep, room=Room((whole + half) // 2))
    assert (tight.context_tokens, tight.serving.load.type_k) == (4096, "f16")
    # A context that was typed stays; the cache, which was not, becomes smaller.
    small = needs(toolchain, deep, 8192, CacheType.Q8_0) + 8 * MIB
    assert small < whole - 64 * MIB
    kept = choose(toolchain, deep, LoadSettings(context_tokens=8192), room=Room(small))
    assert (kept.context_tokens, kept.serving.load.type_k, kept.serving.load.type_v) == (8192, "q8_0", "q8_0")
    # Both typed: neither is changed.
    typed = LoadSettings(context_tokens=8192, type_k=CacheType.F16)
    with pytest.raises(DoesNotFit, match="8,192 tokens") as refused:
        choose(toolchain, deep, typed, room=Room(small))
    assert "may be used" in refused.value.why
    with pytest.raises(DoesNotFit, match="512 tokens"):
        choose(toolchain, deep, room=Room(least // 2))
    forced = choose(toolchain, deep, replace(typed, fit=Fit.OFF), room=Room(small))
    assert forced.serving.load.type_k == "f16"


def test_layers_are_refused_where_there_is_no_gpu(toolchain: Toolchain, base_gguf: Path) -> None:
    with pytest.raises(UsageProblem, match="no GPU"):
        choose(toolchain, base_gguf, LoadSettings(n_gpu_layers=4), room=PLENTY)


def test_clients_are_planned_for(toolchain: Toolchain, base_gguf: Path) -> None:
    one, four = (choose(toolchain, base_gguf, LoadSettings(context_tokens=512), parallel=it, room=PLENTY)
                 for it in (1, 4))  # fmt: skip
    assert four.serving.load.context_tokens == 4 * 512 and four.context_tokens == 512
    assert four.memory.cache_bytes > one.memory.cache_bytes


def test_words_for_layers() -> None:
    assert [parse_layers(it) for it in ("auto", "all", "ALL", "0", "12")] == [None, -1, -1, 0, 12]
    with pytest.raises(ValueError, match="not a number of layers"):
        parse_layers("-3")


def header(path: Path, arch: str, **keys: int | bool) -> Path:
    """A GGUF with one tensor and these keys of its architecture."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(1)
    for key, value in keys.items():
        write = writer.add_bool if isinstance(value, bool) else writer.add_uint32
        write(f"{arch}.{key.replace('__', '.')}", value)
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_what_a_model_answers_with(tmp_path: Path) -> None:
    for name, arch, keys, use in (
        ("text", "llama", {}, Use.TEXT),
        ("encoder", "bert", {"attention__causal": False}, Use.EMBEDDINGS),
        ("last", "qwen3", {"pooling_type": 3}, Use.EMBEDDINGS),
        ("rank", "qwen3", {"pooling_type": 4}, Use.RERANKING),
        ("unpooled", "qwen3", {"pooling_type": 0}, Use.TEXT),
    ):
        file = gguf_file.read_model(header(tmp_path / f"{name}.gguf", arch, **keys))
        assert parameters.use_of(file) is use, name


def test_of_a_folder_the_largest_quantized_one_that_fits(
    toolchain: Toolchain, chat_gguf: Path, deep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(chat_gguf, tmp_path / "wide-BF16.gguf")
    (tmp_path / "noise.gguf").write_bytes(b"nothing")
    header(tmp_path / "mmproj-model.gguf", "clip")
    session = Session(toolchain)
    assert ready(tmp_path, session).file.path.name == "wide-BF16.gguf"
    for preset in ("Q8_0", "Q2_K"):
        tool = toolchain.tool("llama-quantize")
        subprocess.run([tool, deep, tmp_path / f"m-{preset}.gguf", preset], check=True, capture_output=True)
    assert [it.path.name for it in places.models_in(tmp_path)] == [
        "m-Q2_K.gguf",
        "m-Q8_0.gguf",
        "wide-BF16.gguf",
    ]
    assert ready(tmp_path, session).file.path.name == "m-Q8_0.gguf"
    # Its smallest context, with the smaller cache, is what must fit.
    small, large = (
        needs(toolchain, tmp_path / f"m-{it}.gguf", 512, CacheType.Q8_0) for it in ("Q2_K", "Q8_0")
    )
    assert large - small > 4 * MIB
    monkeypatch.setattr(parameters, "room_now", lambda _: Room((small + large) // 2))
    assert ready(tmp_path, session).file.path.name == "m-Q2_K.gguf"
    monkeypatch.setattr(parameters, "room_now", lambda _: Room(MIB))
    with pytest.raises(DoesNotFit):
        ready(tmp_path, session)
    with pytest.raises(GgufProblem, match="neither a GGUF file nor a checkpoint"):
        ready(tmp_path.parent / "empty" if (tmp_path.parent / "empty").mkdir() is None else "", session)


def test_a_projector_is_found_by_its_width(tmp_path: Path) -> None:
    model = header(tmp_path / "model.gguf", "llama", embedding_length=64)
    file = gguf_file.read_model(model)
    assert places.projector_beside(file) is None
    header(tmp_path / "mmproj-other.gguf", "clip", vision__projection_dim=128)
    assert places.projector_beside(file) is None
    right = header(tmp_path / "mmproj-model.gguf", "clip", vision__projection_dim=64)
    assert places.projector_beside(file) == right


def test_a_checkpoint_is_made_into_a_file_first(
    toolchain: Toolchain, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = ready(data / "models" / "chat260K", Session(toolchain))
    assert found.made and found.file.path.is_file() and found.file.has_chat_template
    assert found.file.path.parent == Path("chat260K")


@pytest.mark.hub
def test_a_model_on_the_hub_is_made_into_a_file_first(
    toolchain: Toolchain, data: Path, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    hub.add_repo("some/Chat-Tiny", data / "models" / "chat260K")
    found = ready("some/Chat-Tiny", Session(toolchain))
    assert found.made and found.file.path.parent == Path("Chat-Tiny")
    assert found.file.path.name.startswith("Chat-Tiny-Q")
    # The second time it is there.
    assert ready("some/Chat-Tiny", Session(toolchain)).file.path == found.file.path

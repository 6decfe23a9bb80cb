"""Hollow models: the header of the real thing, and no weights."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import vocabulary
from hubserver import HubFile, HubServer

from benchmarks.headers import LLAMA_8B, Shape, write, write_safetensors
from ggq.conversion import SourceInfo, convert
from ggq.errors import GgufProblem, HubProblem, NeedsWeights, OutputProblem, UsageProblem
from ggq.estimation.hollow_model import HollowModel, _identity, hollow_model
from ggq.gguf import file as gguf_file
from ggq.llamacpp import tools
from ggq.llamacpp.toolchain import Toolchain
from ggq.model_ref import ModelRef
from ggq.presets import catalogue
from ggq.presets.catalogue import Preset
from ggq.progress import Event, Notice
from ggq.session import Session
from ggq.system import files, process

pytestmark = pytest.mark.tool

TINY = ModelRef("hub", "org/tiny-llama")
K_QUANTS = catalogue.load().resolve(["k-quants"])
MB = 1_000_000


def preset(name: str) -> Preset:
    return catalogue.load().resolve([name])[0]


def header(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(gguf_file.read(path).data_offset)


def disk_bytes(*folders: Path) -> int:
    found = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    return sum(files.allocated_bytes(file) or 0 for file in found if not file.is_symlink())


def bench(toolchain: Toolchain, model: Path) -> None:
    """Raises ToolFailed when llama.cpp does not run it."""
    command: list[str | Path] = [toolchain.tool("llama-bench"), "-m", model, "-p", "8", "-n", "2", "-r", "1"]
    done = process.run([*command, "-t", "1", "-ngl", "0", "-o", "jsonl"])
    assert sum(line.startswith("{") for line in done.stdout) == 2


@pytest.fixture(scope="module")
def tiny(example: Path, toolchain: Toolchain, tmp_path_factory: pytest.TempPathFactory) -> HollowModel:
    """The embedded model, hollow: made once, in a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("hollow")))
        made = hollow_model(example, Session(toolchain))
        assert not made.reused and hollow_model(example, Session(toolchain)).reused
    return made


@pytest.fixture
def from_gguf(base_gguf: Path, toolchain: Toolchain) -> HollowModel:
    """The quickest to make: the base is there."""
    return hollow_model(base_gguf, Session(toolchain))


@pytest.mark.hub
def test_a_model_of_the_hub_by_its_headers(
    hub: HubServer, example: Path, toolchain: Toolchain, tmp_path: Path, isolated_environment: Path
) -> None:
    repo = hub.add_repo("org/tiny-llama", example, card={"license": "mit"})
    made = hollow_model(TINY, Session(toolchain))
    assert not made.reused and made.source.commit == repo.refs["main"]
    assert made.source.network_bytes == hub.bytes_sent() < 200_000
    assert hub.bytes_sent("model.safetensors") == 32 << 10
    source = SourceInfo("org/tiny-llama", repo.refs["main"], "mit")
    real = convert(example, tmp_path / "real.gguf", source=source, verify="off", session=Session(toolchain))
    assert made.base.stat().st_size == real.file_bytes
    assert header(made.base) == header(real.output)
    assert disk_bytes(made.folder) < 0.2 * MB
    # Again: one look at the repository, and nothing else; offline not even that.
    before = hub.bytes_sent()
    again = hollow_model(TINY, Session(toolchain))
    assert again.reused and again.base == made.base and again.source.network_bytes == 0
    assert hub.bytes_sent() == before
    asked = len(hub.log)
    assert hollow_model(TINY, Session(toolchain, offline=True)).base == made.base
    assert len(hub.log) == asked
    # Another commit is another model.
    repo.commit({file.name: file for file in example.iterdir() if file.name != "LICENSE-python.txt"})
    assert hollow_model(TINY, Session(toolchain)).folder != made.folder


def test_a_folder(tiny: HollowModel, base_gguf: Path) -> None:
    made, real = gguf_file.read(tiny.base), gguf_file.read(base_gguf)
    assert [(t.name, t.shape, t.type) for t in made.tensors] == [
        (t.name, t.shape, t.type) for t in real.tensors
    ]
    assert tiny.source.network_bytes == 0 and tiny.source.repo_id is None
    assert tiny.peak_memory_bytes is None or tiny.peak_memory_bytes < 500 * MB
    assert disk_bytes(tiny.folder) < 0.2 * MB


def test_a_folder_is_known_by_what_a_conversion_reads(example: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(example, tmp_path / "tiny"))
    known = list(_identity(folder))
    assert known == list(_identity(example))
    (folder / ".cache").mkdir()
    (folder / ".cache" / "file").write_text("no part of it")
    assert list(_identity(folder)) == known
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rope_theta": 20000.0}))
    assert list(_identity(folder)) != known


@pytest.mark.parametrize("chosen", K_QUANTS, ids=lambda chosen: chosen.name)
def test_quantized_it_is_what_llama_quantize_writes(
    from_gguf: HollowModel, chosen: Preset, base_gguf: Path, toolchain: Toolchain, tmp_path: Path
) -> None:
    hollow = from_gguf.quantized(chosen)
    real = tmp_path / "real.gguf"
    tools.quantize(toolchain, base_gguf, real, chosen.ftype, threads=1)
    assert hollow.stat().st_size == real.stat().st_size == from_gguf.recipe(chosen).size.file_bytes
    assert header(hollow) == header(real)
    assert (files.allocated_bytes(hollow) or 0) < 0.2 * MB


def test_every_preset_has_a_hollow_file(from_gguf: HollowModel) -> None:
    for chosen in catalogue.load().presets:
        made = gguf_file.read(from_gguf.quantized(chosen))
        assert made.file_bytes == from_gguf.recipe(chosen).size.file_bytes
        assert made.file_type == (chosen.ftype if chosen.ftype != "COPY" else "BF16")


def rewritten(base: Path, target: Path, changed: Mapping[str, str | list[str] | list[int]]) -> Path:
    """A GGUF with some of its metadata changed."""
    from gguf import GGUFReader, GGUFWriter

    read = GGUFReader(base)
    writer = GGUFWriter(target, "llama")
    for field in read.fields.values():
        if not field.name.startswith("GGUF.") and field.name not in (*changed, "general.architecture"):
            part = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), field.types[0], part)
    for key, value in changed.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    for tensor in read.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def test_texts_end_at_a_nul_as_in_llama_cpp(base_gguf: Path, toolchain: Toolchain, tmp_path: Path) -> None:
    texts: dict[str, str | list[str] | list[int]] = {
        "tokenizer.chat_template": "a\0b",
        "general.tags": ["one", "t\0wo", "three"],
    }
    given = rewritten(base_gguf, tmp_path / "nul.gguf", texts)
    hollow = hollow_model(given, Session(toolchain)).quantized(preset("Q8_0"))
    tools.quantize(toolchain, given, tmp_path / "real.gguf", "Q8_0", threads=1)
    assert header(hollow) == header(tmp_path / "real.gguf")


def test_what_is_said_of_each_layer_is_cut_too(base_gguf: Path, toolchain: Toolchain, tmp_path: Path) -> None:
    given = rewritten(base_gguf, tmp_path / "arrays.gguf", {"llama.attention.head_count": [4, 4]})
    fewer = hollow_model(given, Session(toolchain)).quantized(preset("Q8_0"), layers=1)
    bench(toolchain, fewer)


def test_llama_cpp_runs_it_whole_and_with_fewer_layers(tiny: HollowModel, toolchain: Toolchain) -> None:
    whole = tiny.quantized(preset("Q4_K_M"))
    bench(toolchain, whole)
    fewer = tiny.quantized(preset("Q4_K_M"), layers=1)
    bench(toolchain, fewer)
    read = gguf_file.read(fewer)
    assert read.block_count == 1
    assert not any(tensor.name.startswith("blk.1.") for tensor in read.tensors)
    per_layer = (whole.stat().st_size - fewer.stat().st_size) / whole.stat().st_size
    assert 0.2 < per_layer < 0.5
    with pytest.raises(UsageProblem, match="has 2"):
        tiny.quantized(preset("Q4_K_M"), layers=3)


def test_experts_are_chosen_at_random(
    toolchain: Toolchain, example: Path, base_gguf: Path, tmp_path: Path
) -> None:
    folder = write(tmp_path / "experts", Shape(layers=2, experts=8), example)
    made = hollow_model(folder, Session(toolchain))
    chosen = preset("Q4_K_M")
    plain, routed = made.quantized(chosen), made.quantized(chosen, routed=True)
    assert plain.stat().st_size == routed.stat().st_size
    bench(toolchain, routed)
    assert _shares(toolchain, plain, example, tmp_path).min() == 0
    shares = _shares(toolchain, routed, example, tmp_path)
    assert 0.4 / 8 < shares.min() <= shares.max() < 2 / 8
    assert (files.allocated_bytes(routed) or 0) < 2 * MB


def _shares(toolchain: Toolchain, model: Path, example: Path, work: Path) -> np.ndarray:
    """How often each expert of each layer was chosen over a text, as llama-imatrix counts it."""
    text = work / "text.txt"
    text.write_text((example / "heldout.txt").read_text()[:12_000])
    found = work / "imatrix.gguf"
    process.run(
        [
            toolchain.tool("llama-imatrix"), "-m", model, "-f", text, "-o", found,
            "-c", "256", "-t", "1", "-ngl", "0", "--chunks", "8",
        ]
    )  # fmt: skip
    counts = []
    for tensor in gguf_file.read(found).tensors:
        if tensor.name.endswith("ffn_up_exps.weight.counts"):
            counts.append(np.fromfile(found, np.float32, tensor.elements, offset=tensor.offset_bytes))
    assert len(counts) == 2
    return np.concatenate([count / count.sum() for count in counts])


@pytest.mark.hub
def test_eight_billion_parameters_in_a_few_megabytes(
    hub: HubServer, data: Path, toolchain: Toolchain, tmp_path: Path, isolated_environment: Path
) -> None:
    folder = write(tmp_path / "Llama-8B", LLAMA_8B, data / "tokenizers" / "mistral-v3", shards=4)
    repo = hub.add_repo("org/Llama-8B", {file.name: file for file in folder.glob("*.json")})
    model = {
        # Its digest is announced and never looked at: nobody receives the whole of it.
        file.name: HubFile(file, file.stat().st_size, "0" * 63 + file.name[10], "0" * 40, lfs=True)
        for file in folder.glob("*.safetensors")
    }
    tokenizer = HubFile.of(folder / "tokenizer.model", lfs=True)
    repo.commits[repo.refs["main"]].update({**model, "tokenizer.model": tokenizer})
    made = hollow_model(ModelRef("hub", "org/Llama-8B"), Session(toolchain))
    quantized = made.quantized(preset("Q4_K_M"))
    assert made.source.network_bytes == hub.bytes_sent() < 2 * MB
    assert made.base.stat().st_size > 14_000 * MB and 4_300 * MB < quantized.stat().st_size < 4_500 * MB
    assert disk_bytes(made.folder, isolated_environment) < 20 * MB
    assert made.peak_memory_bytes is None or made.peak_memory_bytes < 400 * MB
    # Q4_K_M gives better types to the first eighth, the last one, and every third in between.
    few = gguf_file.read(made.quantized(preset("Q4_K_M"), layers=4))
    types = [tensor.type for tensor in few.tensors if "ffn_down" in tensor.name]
    assert sorted(types) == ["Q4_K", "Q4_K", "Q6_K", "Q6_K"]


def test_a_vocabulary_of_128_thousand_tokens_is_planned_in_little_memory(
    toolchain: Toolchain, tmp_path: Path
) -> None:
    shape = replace(LLAMA_8B, vocabulary=vocabulary.TOKENS + vocabulary.SPECIAL)
    folder = write(tmp_path / "Llama-3-8B", shape, vocabulary.write(tmp_path / "tokenizer"), shards=4)
    made = hollow_model(folder, Session(toolchain))
    base = gguf_file.read_all(made.base)
    assert base.vocabulary_size == shape.vocabulary
    assert len(base.metadata["tokenizer.ggml.merges"]) == vocabulary.MERGES
    assert made.peak_memory_bytes is None or made.peak_memory_bytes < 400 * MB


@pytest.mark.hub
def test_values_that_the_converter_needs_are_not_made_up(
    hub: HubServer, example: Path, toolchain: Toolchain, tmp_path: Path
) -> None:
    """Of Mamba the converter compares the head with the embedding, and leaves it out where they agree."""
    folder = tmp_path / "mamba"
    shutil.copytree(example, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    config = {
        "architectures": ["MambaForCausalLM"], "model_type": "mamba", "hidden_size": 64, "state_size": 16,
        "num_hidden_layers": 1, "vocab_size": 2048, "conv_kernel": 4, "expand": 2,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    table = (2048, 64)
    write_safetensors(
        folder / "model.safetensors",
        {"backbone.embeddings.weight": table, "backbone.norm_f.weight": (64,), "lm_head.weight": table},
    )
    hub.add_repo("org/mamba", folder)
    with pytest.raises(NeedsWeights, match="can only be planned after download"):
        hollow_model(ModelRef("hub", "org/mamba"), Session(toolchain))


@pytest.mark.hub
def test_offline_without_a_cache(hub: HubServer, example: Path, toolchain: Toolchain) -> None:
    hub.add_repo("org/tiny-llama", example)
    with pytest.raises(HubProblem, match="not in the Hub cache"):
        hollow_model(TINY, Session(toolchain, offline=True))


def test_no_second_quantization(from_gguf: HollowModel, toolchain: Toolchain) -> None:
    quantized = hollow_model(from_gguf.quantized(preset("Q4_0")), Session(toolchain))
    with pytest.raises(GgufProblem, match="quantized already"):
        quantized.quantized(preset("Q4_K_M"))


def test_a_file_system_without_holes(
    example: Path, toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Mounting one takes an administrator; so what this one tells of a file is replaced.
    monkeypatch.setattr(files, "_taken_bytes", lambda stat: stat.st_size)
    with pytest.raises(OutputProblem, match="no sparse files"):
        hollow_model(example, Session(toolchain))


# --- two at once -----------------------------------------------------------------------------------------


@contextmanager
def held(folder: Path, seconds: float) -> Iterator[None]:
    """Another ggq is at work in the folder, for so long."""
    ready = threading.Event()

    def hold() -> None:
        with files.lock(folder):
            ready.set()
            time.sleep(seconds)

    other = threading.Thread(target=hold)
    other.start()
    assert ready.wait(10)
    yield
    other.join()


def test_a_preset_waits_for_another_ggq(from_gguf: HollowModel) -> None:
    with held(from_gguf.folder, 0.5):
        assert from_gguf.quantized(preset("Q8_0")).is_file()


def test_a_model_waits_for_another_ggq_and_says_so(base_gguf: Path, toolchain: Toolchain) -> None:
    folder = hollow_model(base_gguf, Session(toolchain)).folder
    (folder / "hollow.json").unlink()
    heard: list[Event] = []
    with held(folder, 1.5):
        assert not hollow_model(base_gguf, Session(toolchain, listener=heard.append)).reused
    (notice,) = [event for event in heard if isinstance(event, Notice)]
    assert "waits" in notice.text


def test_what_another_ggq_made_meanwhile_is_not_made_again(
    base_gguf: Path, toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = hollow_model(base_gguf, Session(toolchain))
    record = (made.folder / "hollow.json").read_text()
    (made.folder / "hollow.json").unlink()

    def finish(_: Event) -> None:
        (made.folder / "hollow.json").write_text(record)

    with held(made.folder, 1.5):
        assert hollow_model(base_gguf, Session(toolchain, listener=finish)).reused


def test_each_process_has_files_of_its_own(from_gguf: HollowModel, base_gguf: Path) -> None:
    ours = from_gguf.quantized(preset("Q8_0"))
    code = (
        "import sys; from pathlib import Path; from ggq.presets import catalogue as presets;"
        "from ggq.estimation.hollow_model import hollow_model;"
        "model = hollow_model(Path(sys.argv[1])); preset = presets.load().resolve(['Q8_0'])[0];"
        "print(model.quantized(preset)); model.release(preset)"
    )
    command = [sys.executable, "-c", code, str(base_gguf)]
    theirs = Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())
    assert theirs != ours and theirs.parent == ours.parent
    assert ours.is_file() and not theirs.is_file()


def test_what_dead_processes_left_is_removed(
    from_gguf: HollowModel, base_gguf: Path, toolchain: Toolchain
) -> None:
    ours = from_gguf.quantized(preset("Q8_0"))
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        dead.wait()
    left = ours.with_name(ours.name.replace(str(os.getpid()), str(dead.pid)))
    living = ours.with_name(ours.name.replace(str(os.getpid()), str(os.getppid())))
    young = left.with_name(left.name.replace("Q8_0", "Q6_K"))  # perhaps of another host, which is at work
    for other in (left, living, young):
        shutil.copy(ours, other)
    for old in (left, living, ours):
        os.utime(old, (0, 0))
    assert hollow_model(base_gguf, Session(toolchain)).folder == from_gguf.folder
    assert not left.exists() and living.exists() and ours.exists() and young.exists()
    young.unlink()

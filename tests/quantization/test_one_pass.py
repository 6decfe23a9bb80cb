"""The one pass against llama-quantize, by digests of whole files; and one that is broken off."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from by_hand import ByHand
from shared import Store
from tiers import tier

from ggq.errors import DiskFull, GgufProblem, ToolFailed, UsageProblem
from ggq.gguf import file as gguf_file
from ggq.gguf.file import GgufFile
from ggq.gguf.header import TensorInfo
from ggq.llamacpp import tools
from ggq.llamacpp.toolchain import Toolchain
from ggq.llamacpp.tools import QuantizeOptions
from ggq.presets import catalogue
from ggq.presets.catalogue import Preset
from ggq.progress import Event, Step
from ggq.quantization import one_pass_journal as journal
from ggq.quantization import recipe as asking
from ggq.quantization.imatrix import imatrix
from ggq.quantization.imatrix_settings import ImatrixSettings
from ggq.quantization.one_pass import JOURNAL, OnePassResult, obstacle, quantize_in_one_pass
from ggq.quantization.recipe import Recipe
from ggq.quantization.tensor_source import BaseFile, Stream
from ggq.session import Session
from ggq.system import files, process

pytestmark = pytest.mark.tool

OTHER = ("Q1_0", "Q2_0", "TQ1_0", "TQ2_0", "MXFP4_MOE", "F16", "BF16", "F32", "COPY")
KILLS = tier(6, 20)


def offered() -> list[Preset]:
    """Every K-quant, legacy and i-quant preset."""
    shipped = ("k-quants.toml", "legacy.toml", "i-quants.toml")
    return [preset for preset in catalogue.load().presets if Path(preset.defined_in).name in shipped]


@pytest.fixture(scope="module")
def bases(
    toolchain: Toolchain,
    base_gguf: Path,
    example: Path,
    stories: Path,
    data: Path,
    store: Store,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Path]:
    """A 16-bit GGUF by its name, made when it is first wanted."""
    work = tmp_path_factory.mktemp("bases")
    made_here: Mapping[str, Callable[[Path], None]] = {
        "mixtral": lambda folder: tiny.mixtral(folder, example),
        "gemma": lambda folder: tiny.gemma(folder, example),
        "gpt2": lambda folder: tiny.gpt2(folder, data / "tokenizers" / "gpt2"),
    }

    def checkpoint(name: str) -> Path:
        if name == "stories":
            return stories
        if name == "larger":
            return Path(request.getfixturevalue("larger"))
        return store.made({"tiny": name}, lambda folder: made_here[name](folder / name)) / name

    def base(name: str) -> Path:
        if name == "example":
            return base_gguf
        if name.startswith("split"):
            return split(toolchain, base("mixtral"), work / "shards")
        outtype = {"stories": "f32", "f16": "f16"}.get(name, "bf16")
        return store.converted(toolchain, checkpoint("gemma" if name == "f16" else name), outtype)

    return base


@pytest.fixture(scope="module")
def hand(toolchain: Toolchain) -> Iterator[ByHand]:
    hand = ByHand(toolchain)
    yield hand
    hand.close()


def split(toolchain: Toolchain, base: Path, folder: Path) -> Path:
    if not folder.is_dir():
        folder.mkdir()
        tool = toolchain.tool("llama-gguf-split")
        process.run([tool, "--split-max-tensors", "7", base, folder / "split"])
    return min(folder.glob("split-00001-of-*.gguf"))


def matrix(toolchain: Toolchain, base: Path, example: Path, folder: Path) -> Path:
    """The imatrix of a base, by llama-imatrix, from a short text."""
    target, text = folder / "imatrix.gguf", folder / "text.txt"
    text.write_text((example / "heldout.txt").read_text(encoding="utf-8")[:3000], encoding="utf-8")
    imatrix(
        base,
        ImatrixSettings(chunks=2, context=64),
        text=text,
        output=target,
        session=Session(toolchain=toolchain),
    )
    return target


def ask(
    toolchain: Toolchain, base: GgufFile, chosen: Sequence[Preset], options: QuantizeOptions | None = None
) -> list[Recipe]:
    return [asking.ask(toolchain, base, preset, options or QuantizeOptions()) for preset in chosen]


def swept(
    toolchain: Toolchain, base: GgufFile, recipes: Sequence[Recipe], folder: Path, **more: object
) -> OnePassResult:
    folder.mkdir(exist_ok=True)
    targets = [folder / f"{recipe.preset.name}.gguf" for recipe in recipes]
    return quantize_in_one_pass(toolchain, BaseFile(base), recipes, targets, **more)


def digests(made: OnePassResult) -> list[list[str]]:
    return [[files.sha256_file(path) for path in file.paths] for file in made.files]


def made_by(hand: ByHand, base: GgufFile, recipes: Sequence[Recipe], folder: Path) -> list[list[str]]:
    """The digests of what llama-quantize makes; none where it refuses."""
    folders = [folder / recipe.preset.name for recipe in recipes]
    for place in folders:
        place.mkdir(parents=True)
    codes = hand.run(
        [
            [*recipe.options.arguments(), base.path, place / "made.gguf", recipe.preset.ftype, "1"]
            for recipe, place in zip(recipes, folders, strict=True)
        ]
    )
    found = []
    for code, place in zip(codes, folders, strict=True):
        made = sorted(place.iterdir())
        found.append([] if code else [files.sha256_file(path) for path in made])
        for path in made:
            path.unlink()
    return found


# ---- the same bytes --------------------------------------------------------------------------------------


# Each with and without a matrix; in `make test` each once.
COMPARED = tier(
    [
        ("example", False),
        ("mixtral", True),
        ("gemma", False),
        ("gpt2", True),
        ("f16", True),
        ("split", False),
        ("split, kept", True),
    ],
    [
        (name, with_matrix)
        for name in (
            "larger",
            "stories",
            "example",
            "mixtral",
            "gemma",
            "gpt2",
            "f16",
            "split",
            "split, kept",
        )
        for with_matrix in (False, True)
    ],
)  # fmt: skip


@pytest.mark.parametrize(("name", "with_matrix"), COMPARED)
def test_whole_files_are_llama_quantizes_own(
    hand: ByHand,
    bases: Callable[[str], Path],
    toolchain: Toolchain,
    example: Path,
    tmp_path: Path,
    name: str,
    with_matrix: bool,
) -> None:
    base = gguf_file.read_all(bases(name))
    options = QuantizeOptions(
        imatrix=matrix(toolchain, base.path, example, tmp_path) if with_matrix else None,
        keep_split=name == "split, kept",
    )
    chosen = offered()
    recipes = ask(toolchain, base, chosen, options)
    allowed = [it for it in recipes if not it.size.needs_imatrix and obstacle(toolchain, base, it) is None]
    assert len(allowed) == len(recipes) if with_matrix else len(allowed) >= len(recipes) - 9
    made = swept(toolchain, base, allowed, tmp_path / "swept")
    assert made.computed_pairs < sum(len(it.tensors) for it in allowed), "some tensors were made twice"
    expected = made_by(hand, base, recipes, tmp_path / "by hand")
    found = dict(zip([it.preset.name for it in allowed], digests(made), strict=True))
    for recipe, theirs in zip(recipes, expected, strict=True):
        assert found.get(recipe.preset.name, []) == theirs, recipe.preset.name


@pytest.mark.parametrize("kind", ["BF16", "F16", "F32"])
def test_the_other_presets_from_every_type(
    hand: ByHand, base_gguf: Path, toolchain: Toolchain, tmp_path: Path, kind: str
) -> None:
    """Those that are no quantization, or are for few models only."""
    base = gguf_file.read_all(base_gguf)
    if kind != "BF16":
        recipes = ask(toolchain, base, catalogue.load().resolve([kind]))
        (same,) = swept(toolchain, base, recipes, tmp_path / "base").files
        base = gguf_file.read_all(same.paths[0])
    recipes = ask(toolchain, base, catalogue.load().resolve(OTHER))
    made = swept(toolchain, base, recipes, tmp_path / "swept")
    assert digests(made) == made_by(hand, base, recipes, tmp_path / "by hand")


def test_options_are_heeded(
    hand: ByHand, bases: Callable[[str], Path], toolchain: Toolchain, tmp_path: Path
) -> None:
    base = gguf_file.read_all(bases("gemma"))
    options = QuantizeOptions(tensor_types=("attn_v=q8_0",), token_embedding_type="q4_0")
    recipes = ask(toolchain, base, catalogue.load().resolve(["Q4_K_M", "Q6_K"]), options)
    made = swept(toolchain, base, recipes, tmp_path / "swept")
    assert digests(made) == made_by(hand, base, recipes, tmp_path / "by hand")


def test_without_the_quicker_library_the_bytes_are_the_same(
    base_gguf: Path, toolchain: Toolchain, tmp_path: Path
) -> None:
    if not toolchain.quick_types:
        pytest.skip("this CPU has no AVX2, or this llama.cpp is not ggq's own build")
    base = gguf_file.read_all(base_gguf)
    recipes = ask(toolchain, base, catalogue.load().resolve(["k-quants"]))
    plain = replace(toolchain, build=None)
    assert digests(swept(plain, base, recipes, tmp_path / "plain")) == digests(
        swept(toolchain, base, recipes, tmp_path / "quick")
    )


@pytest.mark.parametrize("max_memory_bytes", [1, 60_000, 1_000_000])
def test_how_rows_are_cut_into_blocks_does_not_matter(
    hand: ByHand,
    bases: Callable[[str], Path],
    toolchain: Toolchain,
    example: Path,
    tmp_path: Path,
    max_memory_bytes: int,
) -> None:
    """One row at a time, blocks that end within an expert, blocks of several experts."""
    base = gguf_file.read_all(bases("mixtral"))
    options = QuantizeOptions(imatrix=matrix(toolchain, base.path, example, tmp_path))
    recipes = ask(toolchain, base, catalogue.load().resolve(["Q2_K", "Q4_K_M"]), options)
    made = swept(toolchain, base, recipes, tmp_path / "swept", threads=3, max_memory_bytes=max_memory_bytes)
    assert digests(made) == made_by(hand, base, recipes, tmp_path / "by hand")


# ---- memory, progress ------------------------------------------------------------------------------------


def test_memory_stays_below_what_was_said(
    bases: Callable[[str], Path], toolchain: Toolchain, tmp_path: Path
) -> None:
    base = gguf_file.read_all(bases("larger"))
    recipes = ask(toolchain, base, catalogue.load().resolve(["Q4_0", "Q8_0", "F32"]))
    swept(toolchain, base, recipes, tmp_path / "first")  # imports what no later one does
    peaks = {}
    for limit_bytes in (400_000, 4_000_000):
        tracemalloc.start()
        try:
            swept(
                toolchain, base, recipes, tmp_path / str(limit_bytes), threads=2, max_memory_bytes=limit_bytes
            )
            _, peaks[limit_bytes] = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    # Headers, works and threads are the same for both; the rest is the blocks, which use what they may.
    blocks = peaks[4_000_000] - peaks[400_000]
    assert 1_800_000 < blocks < 3_600_000
    assert peaks[400_000] < 2_500_000


def test_it_tells_how_far_it_is(base_gguf: Path, toolchain: Toolchain, tmp_path: Path) -> None:
    base = gguf_file.read_all(base_gguf)
    recipes = ask(toolchain, base, catalogue.load().resolve(["Q4_0", "Q8_0"]))
    heard: list[Event] = []
    swept(toolchain, base, recipes, tmp_path / "swept", listener=heard.append)
    steps = [event for event in heard if isinstance(event, Step)]
    assert {step.name for step in steps} == {"quantize 2 presets"}
    assert [step.done for step in steps] == sorted(step.done for step in steps)
    assert steps[-1].done == steps[-1].total
    assert 0 < sum(it.size.file_bytes for it in recipes) - steps[-1].done < 200_000, "headers"


# ---- broken off ------------------------------------------------------------------------------------------

RUN = """
import sys
from pathlib import Path
from ggq.gguf import file as gguf_file
from ggq.presets import catalogue
from ggq.llamacpp import toolchain
from ggq.llamacpp.tools import QuantizeOptions
from ggq.quantization.recipe import ask
from ggq.quantization.tensor_source import BaseFile
from ggq.quantization.one_pass import quantize_in_one_pass
base, folder = gguf_file.read_all(Path(sys.argv[1])), Path(sys.argv[2])
tools = toolchain.find()
recipes = [ask(tools, base, preset, QuantizeOptions()) for preset in catalogue.load().resolve(sys.argv[3:])]
targets = [folder / f"{recipe.preset.name}.gguf" for recipe in recipes]
print("begin", flush=True)
made = quantize_in_one_pass(tools, BaseFile(base), recipes, targets, threads=2)
print(made.computed_pairs, made.kept_pairs)
"""
NAMES = ("Q2_K", "Q4_K_M", "Q5_K_M", "Q6_K")


def journaled(folder: Path) -> list[str]:
    lines = (folder / JOURNAL).read_text().splitlines()[1:] if (folder / JOURNAL).exists() else []
    return [json.loads(line) for line in lines if line.endswith('"')]


def test_killed_at_random_moments_no_finished_tensor_is_made_again(
    bases: Callable[[str], Path], toolchain: Toolchain, tmp_path: Path
) -> None:
    base = gguf_file.read_all(bases("larger"))
    recipes = ask(toolchain, base, catalogue.load().resolve(NAMES))
    started = time.monotonic()
    undisturbed = swept(toolchain, base, recipes, tmp_path / "undisturbed")
    whole_s = time.monotonic() - started
    pairs = {
        tensor.name: len({it.tensors[index].target_type for it in recipes})
        for index, tensor in enumerate(recipes[0].tensors)
    }
    assert undisturbed.computed_pairs == sum(pairs.values()) and undisturbed.kept_pairs == 0

    folder = tmp_path / "killed"
    folder.mkdir()
    rng = random.Random(5)
    command = [sys.executable, "-c", RUN, str(base.path), str(folder), *NAMES]
    before: list[str] = []
    interrupted = 0
    for _ in range(KILLS):
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None and child.stdout.readline() == b"begin\n"
            time.sleep(rng.uniform(0, whole_s / 4))
            os.kill(child.pid, signal.SIGKILL)
        after = journaled(folder)
        assert after[: len(before)] == before and len(after) == len(set(after))
        interrupted += len(before) < len(after) < len(pairs)
        before = after
    assert interrupted >= 2, "they came before the work, or after it"
    last = subprocess.run(command, check=True, capture_output=True, text=True)
    computed, kept = map(int, last.stdout.split()[1:])
    assert kept == sum(pairs[name] for name in before)
    assert computed + kept == sum(pairs.values())
    for recipe, found in zip(recipes, digests(undisturbed), strict=True):
        assert [files.sha256_file(folder / f"{recipe.preset.name}.gguf")] == found


@pytest.fixture
def begun(base_gguf: Path, toolchain: Toolchain, tmp_path: Path) -> tuple[GgufFile, list[Recipe], Path]:
    """A pass of the embedded model that was broken off when it was done but for one tensor."""
    base = gguf_file.read_all(base_gguf)
    recipes = ask(toolchain, base, catalogue.load().resolve(["Q4_0", "Q8_0"]))
    folder = tmp_path / "swept"
    swept(toolchain, base, recipes, folder)
    lines = (folder / JOURNAL).read_text().splitlines()
    assert len(journaled(folder)) == len(base.tensors)
    # The last line cut short, as by a full disk.
    (folder / JOURNAL).write_text("\n".join([*lines[:-1], lines[-1][:5]]))
    return base, recipes, folder


def test_a_line_that_was_cut_short_is_not_believed(
    begun: tuple[GgufFile, list[Recipe], Path], toolchain: Toolchain, tmp_path: Path
) -> None:
    base, recipes, folder = begun
    made = swept(toolchain, base, recipes, folder)
    assert made.computed_pairs in (1, 2) and made.kept_pairs > 20
    assert digests(made) == digests(swept(toolchain, base, recipes, tmp_path / "fresh"))
    assert swept(toolchain, base, recipes, folder).computed_pairs == 0


def test_other_presets_begin_anew_and_remove_what_was_begun(
    begun: tuple[GgufFile, list[Recipe], Path], toolchain: Toolchain
) -> None:
    base, recipes, folder = begun
    (folder / "mine.txt").write_text("mine")
    assert swept(toolchain, base, recipes[:1], folder).kept_pairs == 0
    assert {path.name for path in folder.iterdir()} == {"Q4_0.gguf", JOURNAL, "mine.txt"}


def test_what_was_written_before_the_system_started_is_not_believed(
    begun: tuple[GgufFile, list[Recipe], Path], toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, recipes, folder = begun
    monkeypatch.setattr(journal, "_boot", lambda: "another time")
    assert swept(toolchain, base, recipes, folder).kept_pairs == 0


def test_a_file_that_was_damaged_meanwhile_is_made_anew(
    begun: tuple[GgufFile, list[Recipe], Path], toolchain: Toolchain
) -> None:
    base, recipes, folder = begun
    os.truncate(folder / "Q4_0.gguf", 1000)
    assert swept(toolchain, base, recipes, folder).kept_pairs == 0


# ---- sources ---------------------------------------------------------------------------------------------


class Trickle(BaseFile):
    """Data that come in small pieces, and of which the last ``missing`` bytes do not come."""

    missing = 0

    @contextmanager
    def open(self, tensor: TensorInfo) -> Iterator[Stream]:
        with super().open(tensor) as stream:
            left = tensor.data_bytes - self.missing

            class Pieces:
                def readinto(self, room: memoryview, /) -> int | None:
                    nonlocal left
                    count = stream.readinto(room[: min(len(room), left, 1009)]) or 0
                    left -= count
                    return count

            yield Pieces()


def test_data_that_come_in_pieces(base_gguf: Path, toolchain: Toolchain, tmp_path: Path) -> None:
    base = gguf_file.read_all(base_gguf)
    recipes = ask(toolchain, base, catalogue.load().resolve(["Q8_0"]))
    expected = digests(swept(toolchain, base, recipes, tmp_path / "swept"))
    made = quantize_in_one_pass(toolchain, Trickle(base), recipes, [tmp_path / "pieces.gguf"])
    assert digests(made) == expected


def test_data_that_end_too_early(base_gguf: Path, toolchain: Toolchain, tmp_path: Path) -> None:
    base = gguf_file.read_all(base_gguf)
    source = Trickle(base)
    source.missing = 1
    with pytest.raises(GgufProblem, match="truncated"):
        quantize_in_one_pass(
            toolchain, source, ask(toolchain, base, catalogue.load().resolve(["Q8_0"])), [tmp_path / "a.gguf"]
        )


# ---- refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tensor", ["blk.1.ffn_down.weight", "blk.0.attn_norm.weight"])
def test_a_value_that_is_no_number_is_refused_as_llama_quantize_does(
    base_gguf: Path, toolchain: Toolchain, tmp_path: Path, tensor: str
) -> None:
    """Of a tensor that is quantized, and of one that is copied."""
    copy = tmp_path / "base.gguf"
    copy.write_bytes(base_gguf.read_bytes())
    base = gguf_file.read_all(copy)
    (info,) = (it for it in base.tensors if it.name == tensor)
    nan = b"\xc0\x7f" if info.type == "BF16" else b"\x00\x00\xc0\x7f"
    with copy.open("r+b") as stream:
        stream.seek(info.offset_bytes + info.data_bytes - len(nan))
        stream.write(nan)
    recipes = ask(toolchain, base, catalogue.load().resolve(["Q4_0", "Q8_0"]))
    with pytest.raises(ToolFailed) as refused:
        tools.quantize(toolchain, copy, tmp_path / "by hand.gguf", "Q4_0")
    words = f"tensor '{tensor}' has invalid data"
    assert any(words in line for line in refused.value.tail)
    with pytest.raises(GgufProblem, match=words):
        swept(toolchain, base, recipes, tmp_path / "swept")
    assert tensor not in journaled(tmp_path / "swept")


def test_a_number_that_is_too_large_for_its_type(
    hand: ByHand, bases: Callable[[str], Path], toolchain: Toolchain, tmp_path: Path
) -> None:
    copy = tmp_path / "base.gguf"
    copy.write_bytes(bases("stories").read_bytes())
    base = gguf_file.read_all(copy)
    (info,) = (it for it in base.tensors if it.name == "blk.0.attn_q.weight")
    assert info.type == "F32"
    with copy.open("r+b") as stream:
        stream.seek(info.offset_bytes)
        stream.write(np.float32(1e6).tobytes())
    recipes = ask(toolchain, base, catalogue.load().resolve(["F16"]))
    assert made_by(hand, base, recipes, tmp_path / "by hand") == [[]]
    with pytest.raises(GgufProblem, match=r"blk\.0\.attn_q\.weight' cannot become F16"):
        swept(toolchain, base, recipes, tmp_path / "swept")


def test_a_preset_without_its_matrix_is_refused(
    base_gguf: Path, toolchain: Toolchain, tmp_path: Path
) -> None:
    base = gguf_file.read_all(base_gguf)
    with pytest.raises(UsageProblem, match="needs an imatrix"):
        swept(toolchain, base, ask(toolchain, base, catalogue.load().resolve(["IQ1_S"])), tmp_path / "swept")


def test_a_full_disk_is_foreseen(
    base_gguf: Path, toolchain: Toolchain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = gguf_file.read_all(base_gguf)
    monkeypatch.setattr(files, "free_bytes", lambda folder: 1000)
    with pytest.raises(DiskFull, match="the files of Q8_0"):
        swept(toolchain, base, ask(toolchain, base, catalogue.load().resolve(["Q8_0"])), tmp_path / "swept")


def test_what_is_left_to_llama_quantize(
    hand: ByHand,
    bases: Callable[[str], Path],
    base_gguf: Path,
    toolchain: Toolchain,
    example: Path,
    tmp_path: Path,
) -> None:
    base = gguf_file.read_all(base_gguf)
    (plain,) = ask(toolchain, base, catalogue.load().resolve(["Q4_K_M"]))
    assert obstacle(toolchain, base, plain) is None
    assert "not known to ggq" in (obstacle(replace(toolchain, commit=None), base, plain) or "")
    assert "library" in (obstacle(replace(toolchain, lib_dir=tmp_path), base, plain) or "")

    foreign = QuantizeOptions(imatrix=matrix(toolchain, bases("stories"), example, tmp_path))
    with pytest.raises(UsageProblem, match="imatrix of another model"):
        ask(toolchain, base, catalogue.load().resolve(["Q4_K_M"]), foreign)

    # Where no matrix knows the embeddings, ggml would end the whole process.
    options = QuantizeOptions(token_embedding_type="iq2_xs")
    (fatal,) = ask(toolchain, base, catalogue.load().resolve(["Q4_K_M"]), options)
    assert "no importance for token_embd.weight" in (obstacle(toolchain, base, fatal) or "")
    assert made_by(hand, base, [fatal], tmp_path / "fatal") == [[]]

    (copied,) = ask(toolchain, base, catalogue.load().resolve(["COPY"]))
    nameless = replace(base, metadata={k: v for k, v in base.metadata.items() if k != "general.file_type"})
    assert "file type" in (obstacle(toolchain, nameless, copied) or "")

"""Predicted against measured, in one run: bytes of files, memory and speed.

Models of random weights are made on the spot (dense, a mixture of experts, a sliding window, tied embeddings
with a vocabulary of 128 K), the two trained ones beside the project are taken where they are there. Of each
the plan is asked first, from its header alone; then the presets are made, loaded with a filled context, and
run. Of one of them every choice is run, and the recommended one compared with the best of all. Last, a hollow
8 B is predicted from a few of its layers and run whole.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ggq
from benchmarks import headers
from benchmarks.common import EXAMPLE, RESULTS, ROOT, Bar, finish, random_llama
from ggq.errors import GgufProblem
from ggq.estimation.estimator import Account
from ggq.estimation.hollow_model import HollowModel, hollow_model
from ggq.estimation.speed import estimate
from ggq.estimation.speed_meter import SpeedMeter
from ggq.estimation.timings import Calibration
from ggq.gguf import file as gguf_file
from ggq.llamacpp import bench, rpc, toolchain
from ggq.llamacpp.bench import BenchOptions
from ggq.llamacpp.memory import Load
from ggq.llamacpp.offload import Offload
from ggq.llamacpp.toolchain import Toolchain
from ggq.llamacpp.words import CacheType
from ggq.measurement.memory import measure as measure_memory
from ggq.measurement.settings import MemorySettings, Placement
from ggq.measurement.words import MeasuredLoadMode
from ggq.operations.recommend import recommend
from ggq.operations.recommend_types import Limits, Preference
from ggq.presets import catalogue
from ggq.presets.catalogue import Preset
from ggq.session import Session
from ggq.system import hardware

PRESETS = ("Q2_K", "Q4_K_M", "Q6_K", "Q8_0")
DEEP_PRESET = "Q4_K_M"  # in which the longer contexts and the devices are tried
PROMPT_TOKENS, GENERATED_TOKENS, REPETITIONS = 512, 48, 3
# Of a model that takes milliseconds more repetitions: as many as read about so much.
_SECOND_BYTES, _MOST_REPETITIONS = 64 << 20, 10
# And of such a model all is done so many times, and the middle one shown: what else this machine does for a
# second decides there.
_TURNS = 3
_MOST_KLD = 0.05  # mean KLD in nats per token: Q4_K_M and better, by the published table
_BUDGET_S = 60.0
_REGRET_MODEL, _ROUNDS = "dense-500m", 5
# To fill a longer context than this with a large model, or with q8_0, takes ten minutes on two cores; such
# cells are among those of `python -m benchmarks.memory`.
_MANY_PARAMETERS, _SHORT_CONTEXT = 300_000_000, 4096
_MIB = 1 << 20
_SHARED = ROOT.parent / "shared" / "models"


@dataclass(frozen=True)
class Cell:
    """A figure before and after. ``what``: size, memory, prompt or generation, in bytes or tokens/s."""

    what: str
    model: str
    preset: str
    setting: str
    predicted: float
    measured: float
    relative_error: float | None = None

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1

    def __str__(self) -> str:
        unit = _MIB if self.what in ("size", "memory") else 1
        return (
            f"{self.model:<14} {self.preset:<7} {self.what:<10} {self.setting:<28}"
            f" {self.predicted / unit:>10.2f} {self.measured / unit:>10.2f} {100 * self.error:>+7.1f} %"
        )


# --- models ----------------------------------------------------------------------------------------------


def _dense(width: int, ffn: int, layers: int, heads: int) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        random_llama(folder, width=width, ffn=ffn, layers=layers, heads=heads, context=16384)

    return make


def _from_config(name: str, **config: Any) -> Callable[[Path], None]:
    """A model of transformers, with random weights and the example's tokenizer."""

    def make(folder: Path) -> None:
        import torch
        import transformers

        torch.manual_seed(1)
        given = getattr(transformers, f"{name}Config")(max_position_embeddings=16384, **config)
        made = getattr(transformers, f"{name}ForCausalLM")(given).to(torch.bfloat16)
        made.save_pretrained(folder)
        for file in ("tokenizer.model", "tokenizer_config.json"):
            shutil.copy(EXAMPLE / file, folder / file)

    return make


_VOCABULARY = json.loads((EXAMPLE / "config.json").read_text(encoding="utf-8"))["vocab_size"]
MODELS: Mapping[str, Callable[[Path], None]] = {
    "dense-100m": _dense(768, 3072, 10, 12),
    "dense-500m": _dense(1024, 4096, 30, 16),
    "experts": _from_config(
        "Mixtral", hidden_size=512, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=4, num_local_experts=8, vocab_size=_VOCABULARY, sliding_window=None,
    ),
    "window": _from_config(
        "Gemma2", hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=8,
        num_key_value_heads=4, head_dim=96, query_pre_attn_scalar=96, vocab_size=_VOCABULARY,
        sliding_window=1024,
    ),
    "tied-128k": _from_config(
        "Llama", hidden_size=768, intermediate_size=2048, num_hidden_layers=8, num_attention_heads=12,
        num_key_value_heads=4, vocab_size=128256, tie_word_embeddings=True,
    ),
}  # fmt: skip


# --- cells -----------------------------------------------------------------------------------------------


class Foresight:
    """One model: first all that is predicted, then all that is measured."""

    def __init__(
        self, name: str, checkpoint: Path, work: Path, tools: Toolchain, server: str, contexts: Sequence[int]
    ) -> None:
        self._name = name
        self._checkpoint = checkpoint
        self._work = work
        self._tools = tools
        self._server = server
        self._hollow = hollow_model(checkpoint, Session(tools))
        self._account = Account(self._hollow)
        self._facts = self._account.facts()
        own = self._facts.context_length or max(contexts)
        if self._facts.parameter_count > _MANY_PARAMETERS:
            own = min(own, _SHORT_CONTEXT)
        self._contexts = sorted({min(context, own) for context in contexts})
        self._presets = catalogue.load().resolve(PRESETS)
        self.files: dict[str, Path] = {}
        self._small_cache = "q8_0"
        try:
            self._account.memory(self._presets[0], Load(self._contexts[0], "q8_0", "q8_0"))
        except GgufProblem:  # heads narrower than a block
            self._small_cache = "f16"

    def cells(self) -> Iterator[Cell]:
        sizes = {preset.name: self._account.size(preset).file_bytes for preset in self._presets}
        loads = {preset.name: list(self._loads(preset)) for preset in self._presets}
        memory = {
            preset.name: [self._account.memory(preset, load) for load, _ in loads[preset.name]]
            for preset in self._presets
        }
        made = ggq.convert_and_quantize(str(self._checkpoint), PRESETS, self._work / "made", verify="off")
        self.files = {file.preset: file.paths[0] for file in made.files}
        for preset, file in zip(self._presets, made.files, strict=True):
            yield Cell("size", self._name, preset.name, "", sizes[preset.name], file.size.file_bytes)
            for (load, mode), predicted in zip(loads[preset.name], memory[preset.name], strict=True):
                measured = self._resident(file.paths[0], load, mode)
                words = f"{load.context_tokens} {load.type_k} {mode} ngl {load.offload.n_gpu_layers}"
                yield Cell("memory", self._name, preset.name, words, predicted.resident_bytes(mode), measured)
            turns = _TURNS if file.size.file_bytes < 2 * _SECOND_BYTES else 1
            tried = [self._speeds(preset, file.paths[0], sizes, number) for number in range(turns)]
            for cells in zip(*tried, strict=True):
                yield sorted(cells, key=lambda cell: cell.error)[turns // 2]

    def _speeds(self, preset: Preset, file: Path, sizes: Mapping[str, int], number: int) -> tuple[Cell, ...]:
        """Both within the same minute, the real one before and after: this machine's speed is not the same
        all day. Each time from a calibration of its own."""
        kept = Calibration(self._work / f"speed-{number}.json", self._tools)
        meter = SpeedMeter(self._hollow, self._facts, sizes, Load(512), kept)
        rates = run(self._tools, file, self._contexts[-1])
        costs = meter.measure([preset], ["cpu"], _BUDGET_S)[preset.name]
        rates += run(self._tools, file, self._contexts[-1])
        found = estimate(costs, Offload(), self._facts.block_count, 512, meter.threads)
        return tuple(_speeds(self._name, preset, found, rates))

    def _loads(self, preset: Preset) -> Iterator[tuple[Load, str]]:
        yield Load(self._contexts[0], "f16", "f16"), "mmap"
        yield Load(self._contexts[0], self._small_cache, self._small_cache), "none"
        if preset.name != DEEP_PRESET:
            return
        for context in self._contexts[1:]:
            yield Load(context, "f16", "f16"), "none"
            if context <= _SHORT_CONTEXT:
                yield Load(context, self._small_cache, self._small_cache), "mmap"
        layers = self._facts.block_count + 1
        for count in sorted({1, layers // 2, layers}):
            offload = Offload(n_gpu_layers=count, rpc=(self._server,))
            yield Load(self._contexts[0], "f16", "f16", offload=offload), "none"

    def _resident(self, file: Path, load: Load, mode: str) -> int:
        settings = MemorySettings(
            contexts=(load.context_tokens,),
            types_k=(CacheType(load.type_k),),
            types_v=(CacheType(load.type_v),),
            load_modes=(MeasuredLoadMode(mode),),
            placement=Placement(exactly=load.offload),
        )
        (cell,) = measure_memory(file, settings, session=Session(self._tools)).cells
        assert cell.measured is not None, "it did not fit"
        return cell.measured.peaks.resident_bytes


@dataclass(frozen=True)
class Rates:
    """Tokens/s, a sample for each repetition."""

    prompt: tuple[float, ...]
    generation: tuple[float, ...]

    def __add__(self, other: Rates) -> Rates:
        return Rates(self.prompt + other.prompt, self.generation + other.generation)


def run(tools: Toolchain, file: Path, room: int) -> Rates:
    """llama-bench at a prompt and at generation."""
    prompt_tokens = min(PROMPT_TOKENS, room)
    options = BenchOptions(
        prompt_tokens=(prompt_tokens,),
        generated_tokens=(min(GENERATED_TOKENS, room),),
        threads=(hardware.usable_cores(),),
        repetitions=max(REPETITIONS, min(_SECOND_BYTES // file.stat().st_size, _MOST_REPETITIONS)),
    )
    prompt, generation = bench.run(tools, file, options)
    return Rates(prompt.samples_tokens_per_s, generation.samples_tokens_per_s)


def _speeds(name: str, preset: Preset, predicted: Any, measured: Rates) -> Iterator[Cell]:
    assert predicted is not None, "the CPU's speed was measured"
    setting = f"layers {','.join(map(str, predicted.layers))}"
    for what, rate, samples in (
        ("prompt", predicted.prompt, measured.prompt),
        ("generation", predicted.generation, measured.generation),
    ):
        value = statistics.median(samples)
        yield Cell(what, name, preset.name, setting, rate.tokens_per_s, value, rate.relative_error)


def regret(checkpoint: Path, files: Mapping[str, Path], tools: Toolchain) -> tuple[str, float]:
    """How much slower the recommended choice is than the best of all that keep the limit on loss, and what it
    is. Every choice is run in turn, again and again: the machine's own speed changes by more than the bar."""
    limits = Limits(max_kld=_MOST_KLD, prefer=Preference.SPEED)
    found = recommend(checkpoint, PRESETS, limits, session=Session(tools))
    allowed = [found.chosen.preset, *(it.preset for it in found.others)]
    choices = list(itertools.product(allowed, (1, hardware.usable_cores()), ("mmap", "none")))
    seconds: dict[tuple[str, int, str], list[float]] = {choice: [] for choice in choices}
    for preset, threads, mode in choices * _ROUNDS:
        options = BenchOptions(
            generated_tokens=(GENERATED_TOKENS,), threads=(threads,), load_mode=mode, repetitions=2
        )
        (result,) = bench.run(tools, files[preset], options)
        seconds[preset, threads, mode] += [1 / it for it in result.samples_tokens_per_s]
    medians = {choice: statistics.median(values) for choice, values in seconds.items()}
    assert found.serving.threads is not None, "it is of this machine"
    ours = (found.chosen.preset, found.serving.threads, found.serving.load_mode)
    best = min(medians, key=medians.__getitem__)
    for choice, value in sorted(medians.items(), key=lambda it: it[1]):
        mark = " <- recommended" if choice == ours else ""
        print(f"{choice[0]:<7} {choice[1]} threads, {choice[2]:<4} {1 / value:>8.2f} tokens/s{mark}")
    return f"{ours} against {best}", 1 - medians[best] / medians[ours]


def hollow_8b(work: Path, tools: Toolchain) -> Iterator[Cell]:
    """From a few layers against the whole, both without weights."""
    shape = replace(headers.LLAMA_8B, vocabulary=_VOCABULARY)
    hollow: HollowModel = hollow_model(headers.write(work / "hollow-8b", shape, EXAMPLE), Session(tools))
    account = Account(hollow)
    (preset,) = catalogue.load().resolve([DEEP_PRESET])
    sizes = {preset.name: account.size(preset).file_bytes}
    kept = Calibration(work / "speed-8b.json", tools)
    meter = SpeedMeter(hollow, account.facts(), sizes, Load(512), kept)
    costs = meter.measure([preset], ["cpu"], _BUDGET_S)[preset.name]
    whole = hollow.quantized(preset)
    blocks = gguf_file.read(whole).block_count or 0
    found = estimate(costs, Offload(), blocks, 512, meter.threads)
    yield from _speeds("hollow-8b", preset, found, run(tools, whole, 128))


# --- the table -------------------------------------------------------------------------------------------


def bars(cells: Sequence[Cell]) -> Iterator[Bar]:
    """The promises: bytes exact; memory never below what was measured and little above; speed near."""
    size = [abs(cell.predicted - cell.measured) for cell in cells if cell.what == "size"]
    yield Bar("size-bytes-off", max(size), 0)
    memory = [cell for cell in cells if cell.what == "memory"]
    yield Bar("memory-below-measured", sum(cell.predicted < cell.measured for cell in memory), 0)
    # An error counts as a share of what is allowed: of the measured bytes, or a fixed number where more.
    median = [abs(it.predicted - it.measured) / max(0.03 * it.measured, 24 * _MIB) for it in memory]
    yield Bar("memory-median-of-allowed", statistics.median(median), 1)
    worst = [abs(it.predicted - it.measured) / max(0.08 * it.measured, 48 * _MIB) for it in memory]
    yield Bar("memory-worst-of-allowed", max(worst), 1)
    speed = sorted(abs(cell.error) for cell in cells if cell.what in ("prompt", "generation"))
    yield Bar("speed-median-error", statistics.median(speed), 0.10)
    yield Bar("speed-worst-error", speed[-1], 0.25)


def summary(cells: Sequence[Cell]) -> Iterator[str]:
    for what in ("size", "memory", "prompt", "generation"):
        errors = sorted(abs(cell.error) for cell in cells if cell.what == what)
        if errors:
            high = errors[min(len(errors) - 1, round(0.95 * (len(errors) - 1)))]
            median = statistics.median(errors)
            yield (
                f"{what:<10} {len(errors):>3} cells, error: median {median:.1%}, 95 % {high:.1%},"
                f" worst {errors[-1]:.1%}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    names = [*MODELS, *(path.name for path in sorted(_SHARED.glob("*")) if path.is_dir()), "hollow-8b"]
    parser.add_argument("--models", nargs="+", choices=names, default=names)
    parser.add_argument("--contexts", nargs="+", type=int, default=[512, 4096, 16384])
    options = parser.parse_args()
    tools = toolchain.find()
    RESULTS.mkdir(exist_ok=True)
    cells: list[Cell] = []
    print(f"{'':<62} {'predicted':>10} {'measured':>10}   (MiB, tokens/s)")
    regrets: dict[str, float] = {}
    with ExitStack() as stack:
        server = stack.enter_context(rpc.loopback_device(tools))
        for name in options.models:
            with tempfile.TemporaryDirectory(dir=RESULTS) as folder:
                work = Path(folder)
                if name == "hollow-8b":
                    cells += map(_printed, hollow_8b(work, tools))
                    continue
                checkpoint = _SHARED / name if name not in MODELS else work / name
                if name in MODELS:
                    MODELS[name](checkpoint)
                model = Foresight(name, checkpoint, work, tools, server, options.contexts)
                cells += map(_printed, model.cells())
                if name == _REGRET_MODEL:
                    what, regrets[name] = regret(checkpoint, model.files, tools)
                    print(f"regret: {regrets[name]:.1%}, {what}")
    print(*summary(cells), sep="\n")
    finish(
        "foresight",
        {"cells": [asdict(cell) for cell in cells], "regrets": regrets},
        [*bars(cells), *(Bar(f"regret-{name}", value, 0.05) for name, value in regrets.items())],
    )


def _printed(cell: Cell) -> Cell:
    print(cell, flush=True)
    return cell


if __name__ == "__main__":
    main()

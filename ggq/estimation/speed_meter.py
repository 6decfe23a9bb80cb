"""What tokens of a preset cost: its hollow file, or some of its layers, run for real.

llama.cpp runs a file without weights as fast as the real one, since the same number of bytes goes
through the same kernels. Where the whole would take long, or more memory than there is, two cuts of different
depth are run.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ggq.errors import DoesNotFit, GgufProblem, ToolFailed, UsageProblem
from ggq.estimation.estimator import ModelFacts
from ggq.estimation.hollow_model import HollowModel
from ggq.estimation.speed import Costs, Kind, Line
from ggq.estimation.timings import Calibration, Timings
from ggq.llamacpp import bench
from ggq.llamacpp.bench import BenchOptions
from ggq.llamacpp.memory import Load
from ggq.llamacpp.offload import ALL_LAYERS, Offload
from ggq.llamacpp.threads import ThreadChoice, choose_threads, thread_candidates
from ggq.llamacpp.toolchain import Toolchain
from ggq.presets.catalogue import Preset
from ggq.progress import Listener, Notice, Step, silent
from ggq.system import hardware

STEP = "predict speed"
# Of large models, and of small ones, as llama-bench's own defaults have it.
PROMPT_TOKENS, _MORE_PROMPT_TOKENS = 128, 512
GENERATED_TOKENS, _MORE_GENERATED_TOKENS = 24, 64
DEPTH_TOKENS = 1024
# Reads the file and wakes the threads; its time is thrown away.
_WARM_UP_TOKENS = 16
_THREAD_PROMPT_TOKENS = 64
# A model up to this size is run whole: two cuts of it would not be quicker.
_WHOLE_BYTES = 700 << 20
_MORE_LAYERS = 3
# Sliding-window layers come in patterns of up to six (Gemma 3: five of them, one of full attention).
_PATTERN = 6
# Of the devices' room, for the weights of layers that are run there alone.
_DEVICE_SHARE = 0.7
_CACHE_BYTES = 64 << 20  # of a CPU that does not tell
# Of large models one repetition at first, so that the budget reaches all presets; of those that take
# milliseconds so many that together they read about this much.
_SECOND_BYTES, _MOST_REPETITIONS = 64 << 20, 10
_MORE_REPETITIONS, _MOST_ROUNDS, _GOOD_ERROR = 2, 3, 0.04
# Runs of the same file on a quiet machine differ by about so much, whatever a few repetitions say.
_LEAST_ERROR, _ERROR_OF_ONE = 0.03, 0.05


def timed(
    toolchain: Toolchain,
    model: Path,
    load: Load,
    threads: ThreadChoice,
    whole_bytes: int,
    least_repetitions: int = 1,
) -> Timings:
    """A short run of a prompt and of generation in an empty context, oftener and longer the smaller the
    model is: ``whole_bytes``, also of one of which only some layers are there.

    Raises as ``bench.run`` does.
    """
    small = whole_bytes <= _WHOLE_BYTES
    repetitions = max(least_repetitions, min(_SECOND_BYTES // whole_bytes, _MOST_REPETITIONS), 1 + small)
    prompt_tokens = _MORE_PROMPT_TOKENS if small else PROMPT_TOKENS
    # A small one is warmed up by a whole prompt; of a large one a short prompt must do.
    prompts = (prompt_tokens,) if small else (_WARM_UP_TOKENS, prompt_tokens)
    generated_tokens = _MORE_GENERATED_TOKENS if small else GENERATED_TOKENS
    options = replace(_options(load, threads.prompt), repetitions=repetitions, warm_up=small)
    if threads.prompt == threads.generation:
        both = replace(options, prompt_tokens=prompts, generated_tokens=(generated_tokens,))
        *_, prompt, generation = bench.run(toolchain, model, both)
    else:
        *_, prompt = bench.run(toolchain, model, replace(options, prompt_tokens=prompts))
        alone = replace(options, generated_tokens=(generated_tokens,), threads=(threads.generation,))
        (generation,) = bench.run(toolchain, model, replace(alone, warm_up=True))
    return Timings(
        prompt_s=tuple(ns / 1e9 / prompt_tokens for ns in prompt.samples_ns),
        generation_s=tuple(ns / 1e9 / generated_tokens for ns in generation.samples_ns),
    )


def _options(load: Load, threads: int) -> BenchOptions:
    return BenchOptions(
        threads=(threads,),
        offload=load.offload,
        type_k=load.type_k,
        type_v=load.type_v,
        flash_attention=load.flash_attention,
        repetitions=1,
        warm_up=False,
    )


class SpeedMeter:
    """Runs hollow files of a model on this machine and remembers what they took."""

    def __init__(
        self,
        hollow: HollowModel,
        facts: ModelFacts,
        file_bytes: Mapping[str, int],
        load: Load,
        calibration: Calibration,
        *,
        devices: Sequence[str] = (),
        vram_bytes: int | None = None,
        listener: Listener = silent,
    ) -> None:
        """``file_bytes``: preset name -> size of its file; ``load``: type of cache, and which devices may be
        used; ``devices``: these in words, so that another one's timings are not taken for theirs, with
        ``vram_bytes`` of room together (None: they hold everything)."""
        self._hollow = hollow
        self._facts = facts
        self._file_bytes = file_bytes
        self._load = load
        self._calibration = calibration
        self._devices = devices
        self._vram_bytes = vram_bytes
        self._listener = listener
        self._layer_count = facts.block_count or 1
        self._cuts: dict[tuple[str, Kind], tuple[int, ...]] = {}
        self._failed: set[tuple[str, Kind]] = set()
        self.threads = ThreadChoice(hardware.usable_cores(), hardware.usable_cores())

    def choose_threads(self, wanted: Sequence[Preset]) -> None:
        """Find the numbers of threads that are best for prompts and for generation, on few layers of one
        preset; measured before, they are known. Raises as ``measure`` does."""
        candidates = thread_candidates(hardware.usable_cores())
        preset = _spread(wanted)[0]
        layers = self.cuts(preset, "cpu")[0]
        load = replace(self._load, offload=Offload())
        key = f"threads of {self._key(preset, 'cpu', layers)}"
        if len(candidates) == 1:
            return
        options = replace(
            _options(load, 1),
            prompt_tokens=(_THREAD_PROMPT_TOKENS,),
            generated_tokens=(GENERATED_TOKENS,),
            threads=candidates,
            repetitions=_MORE_REPETITIONS,
        )

        def choose() -> ThreadChoice:
            with self._file(preset, layers) as file:
                return choose_threads(bench.run(self._hollow.toolchain, file, options))

        with self._tolerant(preset, "cpu"):
            self.threads = self._calibration.threads(key, choose)

    def measure(
        self, wanted: Sequence[Preset], kinds: Sequence[Kind], budget_s: float
    ) -> dict[str, dict[Kind, Costs]]:
        """Preset name -> its costs in each place, of as many presets as ``budget_s`` seconds allow; the
        first always. What was measured before is not measured again. What llama.cpp does not run, for want
        of memory or of a layer that belongs to it, has no costs, and a word is said.

        Raises ToolchainProblem, OutputProblem, DiskFull.
        """
        started = time.monotonic()
        new = [
            (preset, kind) for preset in _spread(wanted) for kind in kinds if not self._known(preset, kind)
        ]
        todo, longest_s = new, 0.0
        for turn in range(_MOST_ROUNDS):
            again = []
            for done, (preset, kind) in enumerate(todo):
                begun = time.monotonic()
                if (turn or done) and begun - started + longest_s > budget_s:
                    break
                if turn == 0:
                    self._listener(Step(STEP, done, len(new), "presets"))
                with self._tolerant(preset, kind):
                    self._run(preset, kind)
                    again += [(preset, kind)] * (self._error(preset, kind) > _GOOD_ERROR)
                longest_s = max(longest_s, time.monotonic() - begun)
            todo = again
        depths = {kind: self._depth_s(wanted, kind) for kind in kinds}
        if new:
            self._listener(Step(STEP, len(new), len(new), "presets"))
        self._calibration.save()
        return {
            preset.name: {
                kind: self._costs(preset, kind, depths[kind]) for kind in kinds if self._known(preset, kind)
            }
            for preset in wanted
        }

    # --- cuts ------------------------------------------------------------------------------------------

    def cuts(self, preset: Preset, kind: Kind) -> tuple[int, ...]:
        """The numbers of blocks to run: all, or two that reach beyond the CPU's cache. Settled once, since
        what memory is free changes."""
        if (preset.name, kind) not in self._cuts:
            self._cuts[preset.name, kind] = self._choose_cuts(self._file_bytes[preset.name], kind)
        return self._cuts[preset.name, kind]

    def _choose_cuts(self, size: int, kind: Kind) -> tuple[int, ...]:
        layers = self._layer_count
        each = max(1, size // (layers + 1))
        few = max(1, math.ceil(2 * (hardware.last_cache_bytes() or _CACHE_BYTES) / each))
        if self._facts.sliding_window_tokens:
            few = math.ceil(few / _PATTERN) * _PATTERN
        more = few + max(_MORE_LAYERS, few)
        fits = size < hardware.available_ram_bytes() // 2
        if kind == "device" and self._vram_bytes is not None:
            # All of what is run is there, with buffers beside it.
            most = int(_DEVICE_SHARE * self._vram_bytes / each)
            fits = fits and layers <= most
            more = min(more, max(2, most))
            few = min(few, more - 1)
        if fits and (size <= _WHOLE_BYTES or 2 * more >= layers):
            # Of a model that may lie in two places the line is wanted, and not only its end.
            return (layers,) if kind == "cpu" or layers == 1 else (layers // 2, layers)
        return (few, more) if more < layers else (max(1, layers // 2), layers)

    def _known(self, preset: Preset, kind: Kind) -> bool:
        return (preset.name, kind) not in self._failed and all(
            self._key(preset, kind, layers) in self._calibration for layers in self.cuts(preset, kind)
        )

    def _key(self, preset: Preset, kind: Kind, layers: int) -> str:
        cache = f"{self._load.type_k}/{self._load.type_v}/{self._load.flash_attention}"
        threads = f"{self.threads.prompt}/{self.threads.generation} threads"
        key = f"{self._hollow.key(preset)} {kind} {layers} layers, cache {cache}, {threads}"
        return key if kind == "cpu" else f"{key}, {', '.join(self._devices)}, {self._load.offload}"

    # --- runs ------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _tolerant(self, preset: Preset, kind: Kind) -> Iterator[None]:
        """A run that llama.cpp refuses costs no more than its figures."""
        try:
            yield
        except (DoesNotFit, GgufProblem, ToolFailed, UsageProblem) as problem:
            self._failed.add((preset.name, kind))
            self._listener(Notice(f"No speed of {preset.name}: {problem.what} {problem.why}".rstrip()))

    def _run(self, preset: Preset, kind: Kind) -> None:
        """A few repetitions of each cut."""
        load = replace(self._load, offload=self._offload(kind))
        size = self._file_bytes[preset.name]
        for layers in self.cuts(preset, kind):
            with self._file(preset, layers) as file:
                taken = timed(self._hollow.toolchain, file, load, self.threads, size)
            self._calibration.add(self._key(preset, kind, layers), taken)

    @contextlib.contextmanager
    def _file(self, preset: Preset, layers: int) -> Iterator[Path]:
        whole = layers == self._layer_count
        file = self._hollow.quantized(preset, layers=None if whole else layers, routed=True)
        try:
            yield file
        finally:
            file.unlink(missing_ok=True)

    def _offload(self, kind: Kind) -> Offload:
        if kind == "cpu":
            return Offload()
        # The output layer goes first: with one layer on the devices all blocks are beside them.
        layers = 1 if kind == "beside" else ALL_LAYERS
        moe = self._layer_count if kind == "experts" else 0
        return replace(self._load.offload, n_gpu_layers=layers, n_cpu_moe=moe)

    def _depth_s(self, wanted: Sequence[Preset], kind: Kind) -> float:
        """Attention looks at the cache and not at weights, so that one preset stands for all."""
        measured = [preset for preset in wanted if self._known(preset, kind)]
        depth = min(DEPTH_TOKENS, (self._facts.context_length or DEPTH_TOKENS) - GENERATED_TOKENS)
        if not measured or depth <= 0:
            return 0.0
        preset = min(measured, key=lambda it: self._file_bytes[it.name])
        layers = self.cuts(preset, kind)[0]
        key = f"{self._key(preset, kind, layers)}, depth {depth}"
        if key not in self._calibration:
            load = replace(self._load, offload=self._offload(kind))
            options = replace(
                _options(load, self.threads.generation),
                generated_tokens=(GENERATED_TOKENS,),
                depths=(depth,),
                repetitions=1,
            )
            with contextlib.suppress(DoesNotFit, GgufProblem, ToolFailed), self._file(preset, layers) as file:
                (found,) = bench.run(self._hollow.toolchain, file, options)
                seconds = found.samples_ns[0] / 1e9 / GENERATED_TOKENS
                self._calibration.add(key, Timings(generation_s=(seconds,)))
        if key not in self._calibration:
            return 0.0
        deep = statistics.median(self._calibration[key].generation_s)
        flat = statistics.median(self._calibration[self._key(preset, kind, layers)].generation_s)
        return max(0.0, deep - flat) / layers / depth

    def _error(self, preset: Preset, kind: Kind) -> float:
        costs = self._costs(preset, kind, 0.0)
        return max(costs.prompt.error, costs.generation.error)

    def _costs(self, preset: Preset, kind: Kind, depth_s: float) -> Costs:
        timings = {
            layers: self._calibration[self._key(preset, kind, layers)] for layers in self.cuts(preset, kind)
        }
        return Costs(
            prompt=_line({layers: it.prompt_s for layers, it in timings.items()}),
            generation=_line({layers: it.generation_s for layers, it in timings.items()}),
            depth_s=depth_s,
        )


def _line(samples: Mapping[int, Sequence[float]]) -> Line:
    errors = [
        statistics.stdev(values) / math.sqrt(len(values)) / statistics.fmean(values)
        for values in samples.values()
        if len(values) > 1
    ]
    points = tuple((layers, statistics.median(values)) for layers, values in sorted(samples.items()))
    once = any(len(values) == 1 for values in samples.values())
    return Line(points, max(_ERROR_OF_ONE if once else _LEAST_ERROR, *errors, 0))


def _spread(presets: Iterable[Preset]) -> list[Preset]:
    """Those that people ask for first, so that a short budget is spent on them."""
    order = ("Q4_K_M", "Q8_0", "Q2_K", "Q6_K", "Q5_K_M", "Q3_K_M")
    rank = {name: index for index, name in enumerate(order)}
    return sorted(presets, key=lambda preset: rank.get(preset.name, len(rank)))

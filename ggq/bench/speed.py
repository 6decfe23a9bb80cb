"""Tokens per second of a model on this machine: prompt and generation, by depth, threads and placement.

The figures are llama-bench's, repeated until their error is small; beside them what a Python user gets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ggq import gguf_file, gguf_names, hardware
from ggq.bench import binding, workload
from ggq.bench.binding import BindingRate, Timing, binding_rate
from ggq.bench.rates import Precision, Rate, pooled_deviation, rate
from ggq.bench.workload import Point, ThreadChoice
from ggq.errors import GgqError
from ggq.llamacpp import bench
from ggq.llamacpp.bench import BenchOptions, BenchResult
from ggq.llamacpp.offload import Offload
from ggq.llamacpp.toolchain import Toolchain
from ggq.progress import Listener, Step, silent

NOISY = 0.05  # a relative deviation between repetitions that a person should know of
_TRIAL_PROMPT_TOKENS, _TRIAL_GENERATED_TOKENS, _TRIAL_REPETITIONS = 128, 16, 3


@dataclass(frozen=True)
class SpeedSettings:
    """What to measure.

    ``prompt_tokens``, ``generated_tokens``: lengths, () for none; None: 512 and 128 (``quick``: 128 and 32),
    or what the model's context has room for. ``depths``: tokens in the context before. ``threads``: a number,
    ``auto`` (the best for prompt and generation each), None: all cores that one may use.
    ``n_gpu_layers``: see ggq.bench.workload.placements; the output layer counts as one.
    ``rpc``: ``host:port`` of ggml-rpc-servers. ``binding``: measure llama-cpp-python as well.
    The other words are llama-bench's (ggq.llamacpp.bench).
    """

    prompt_tokens: tuple[int, ...] | None = None
    generated_tokens: tuple[int, ...] | None = None
    depths: tuple[int, ...] = (0,)
    threads: int | Literal["auto"] | None = None
    n_gpu_layers: tuple[int, ...] | Literal["sweep"] | None = None
    n_cpu_moe: int = 0
    tensor_split: tuple[float, ...] = ()
    rpc: tuple[str, ...] = ()
    type_k: str = "f16"
    type_v: str = "f16"
    flash_attention: str = "auto"
    load_mode: str = "auto"
    precision: Precision = field(default_factory=Precision)
    binding: bool = True
    quick: bool = False


@dataclass(frozen=True)
class BindingFigure:
    """What a Python user gets with these ``options`` of ``Llama``. ``ratio``: to llama-bench's median;
    ``matched``: with llama-bench's settings instead of the binding's defaults, where that was tried;
    ``explanation``: of a gap over 10 %, else empty."""

    speed: BindingRate
    ratio: float
    options: dict[str, Any]
    matched: BindingRate | None
    explanation: str


@dataclass(frozen=True)
class SpeedFigure:
    """One figure. ``test``, ``tokens``, ``depth_tokens``: as in ``Point``; ``devices``: those that hold
    layers beside the CPU; ``settled``: its error came below the target; ``arguments``: llama-bench's command
    line but for the model, to repeat the first batch by hand."""

    test: Literal["prompt", "generation"]
    tokens: int
    depth_tokens: int
    n_gpu_layers: int
    devices: tuple[str, ...]
    threads: int
    speed: Rate
    settled: bool
    binding: BindingFigure | None
    arguments: tuple[str, ...]

    @property
    def point(self) -> Point:
        return Point(self.test, self.tokens, self.depth_tokens)


@dataclass(frozen=True)
class Failure:
    """A placement that could not be measured to its end, in the words of its error."""

    n_gpu_layers: int
    what: str
    why: str
    next_step: str


@dataclass(frozen=True)
class SpeedResult:
    """All figures of a model. ``preset``: its type, by its name or its header; ``layer_count``: with the
    output layer; ``noise``: the relative standard deviation between repetitions, over all figures;
    ``remarks``: sentences that belong to the figures; ``failures``: what was asked for and is missing."""

    file: str
    preset: str | None
    file_bytes: int
    layer_count: int
    build_commit: str
    backends: str
    cpu_name: str
    type_k: str
    type_v: str
    flash_attention: str
    load_mode: str
    n_batch: int
    n_ubatch: int
    threads: ThreadChoice
    figures: tuple[SpeedFigure, ...]
    noise: float | None
    remarks: tuple[str, ...]
    failures: tuple[Failure, ...]


def measure(
    model: Path,
    settings: SpeedSettings | None = None,
    *,
    toolchain: Toolchain,
    listener: Listener = silent,
) -> SpeedResult:
    """Measure the speed of a GGUF file (of several shards: any one of them names it).

    A placement that fails (memory, a lost RPC server) ends up in ``failures`` and the others are measured.

    Raises GgufProblem for what is no model, UsageProblem for what cannot be asked of it or of this machine
    (a context beyond the model's, layers on a GPU that is not there), and when there is no figure at all the
    error of the first placement: see ggq.llamacpp.bench.run.
    """
    return _Session(model, settings or SpeedSettings(), toolchain, listener).run()


class _Session:
    """One model being measured."""

    def __init__(
        self, model: Path, settings: SpeedSettings, toolchain: Toolchain, listener: Listener
    ) -> None:
        self._gguf = gguf_file.read_all(model)
        self._settings = settings
        self._toolchain = toolchain
        self._listener = listener
        self._points = workload.points(
            self._gguf,
            settings.prompt_tokens,
            settings.generated_tokens,
            settings.depths,
            quick=settings.quick,
        )
        self._devices = bench.devices(toolchain, settings.rpc)
        self._placements = workload.placements(
            self._gguf,
            self._devices,
            settings.n_gpu_layers,
            n_cpu_moe=settings.n_cpu_moe,
            tensor_split=settings.tensor_split,
            rpc=settings.rpc,
        )
        self._remarks: list[str] = []
        self._failures: list[Failure] = []
        self._first_error: GgqError | None = None
        self._last_result: BenchResult | None = None
        self._done = 0

    @property
    def _model(self) -> Path:
        return self._gguf.path

    def run(self) -> SpeedResult:
        self._count(0)
        threads = self._choose_threads()
        figures: list[SpeedFigure] = []
        for placement in self._placements:
            figures += self._measure_placement(placement, threads)
        if not figures or self._last_result is None:
            assert self._first_error is not None, "without an error there are figures"
            raise self._first_error
        noise = pooled_deviation([figure.speed for figure in figures])
        self._remark_on_precision(figures, noise)
        seen = self._last_result
        return SpeedResult(
            file=self._model.name,
            preset=gguf_names.parse_name(self._model.name).type or self._gguf.file_type,
            file_bytes=self._gguf.file_bytes,
            layer_count=workload.layer_count(self._gguf),
            build_commit=seen.build_commit,
            backends=seen.backends,
            cpu_name=seen.cpu_name,
            type_k=seen.type_k,
            type_v=seen.type_v,
            flash_attention=seen.flash_attention,
            load_mode=seen.load_mode,
            n_batch=seen.n_batch,
            n_ubatch=seen.n_ubatch,
            threads=threads,
            figures=tuple(figures),
            noise=noise,
            remarks=tuple(self._remarks),
            failures=tuple(self._failures),
        )

    # --- threads -------------------------------------------------------------------------------------

    def _choose_threads(self) -> ThreadChoice:
        usable = hardware.usable_cores()
        asked = self._settings.threads
        if asked == "auto":
            return self._try_threads(workload.thread_candidates(usable))
        if asked is not None and asked > usable:
            self._remark(f"{asked} threads on {usable} usable cores: they wait for one another.")
        return ThreadChoice(asked or usable, asked or usable)

    def _try_threads(self, candidates: tuple[int, ...]) -> ThreadChoice:
        """The fewest threads that are as fast as the best, found where the CPU has most to do."""
        if len(candidates) == 1:
            return ThreadChoice(candidates[0], candidates[0])
        lengths = {point.test: point.tokens for point in reversed(self._points)}
        options = replace(
            self._options(self._placements[0]),
            prompt_tokens=_at_most(lengths.get("prompt"), _TRIAL_PROMPT_TOKENS),
            generated_tokens=_at_most(lengths.get("generation"), _TRIAL_GENERATED_TOKENS),
            threads=candidates,
            repetitions=_TRIAL_REPETITIONS,
        )
        found = bench.run(self._toolchain, self._model, options)
        self._count(1)
        return workload.choose_threads(found)

    # --- llama-bench ---------------------------------------------------------------------------------

    def _options(self, placement: Offload) -> BenchOptions:
        return BenchOptions(
            offload=placement,
            type_k=self._settings.type_k,
            type_v=self._settings.type_v,
            flash_attention=self._settings.flash_attention,
            load_mode=self._settings.load_mode,
        )

    def _measure_placement(self, placement: Offload, threads: ThreadChoice) -> list[SpeedFigure]:
        options = self._options(placement)
        python = self._python_options(options, threads)
        taken = _Taken(self._settings.precision, self._points)
        failed = False
        try:
            self._measure_rounds(taken, options, threads, python)
        except GgqError as error:
            failed = True
            self._first_error = self._first_error or error
            self._failures.append(Failure(placement.n_gpu_layers, error.what, error.why, error.next_step))
        figures = [
            self._figure(point, placement, threads, batches)
            for point, batches in taken.bench.items()
            if batches
        ]
        return self._with_binding(figures, taken, options, python, explore=not failed)

    def _measure_rounds(
        self, taken: _Taken, options: BenchOptions, threads: ThreadChoice, python: dict[str, Any] | None
    ) -> None:
        """A batch of each figure that is not settled, again and again: what slows the machine down for a
        while then falls on all of them, on the binding's too."""
        before = self._done
        while True:
            wanted = taken.wanted()
            for point, count in wanted.items():
                one = replace(_only(point, options, threads), repetitions=count)
                (self._last_result,) = bench.run(self._toolchain, self._model, one)
                taken.bench[point].append(self._last_result.samples_ns)
            wanted_of_python = taken.wanted_of_python() if python is not None else {}
            if python is not None and wanted_of_python:
                try:
                    found = binding.measure(self._toolchain, self._model, wanted_of_python, options, python)
                except GgqError as error:
                    python = None
                    self._remark_on_binding(error)
                else:
                    for point, timings in found.items():
                        taken.python[point].append(timings)
            if not wanted and not wanted_of_python:
                break
            self._count(before + taken.settled_count(python is not None))
        self._count(before + len(self._points) * self._each)

    def _figure(
        self, point: Point, placement: Offload, threads: ThreadChoice, batches: Sequence[tuple[int, ...]]
    ) -> SpeedFigure:
        options = _only(point, self._options(placement), threads)
        speed = rate(point.tokens, batches)
        return SpeedFigure(
            test=point.test,
            tokens=point.tokens,
            depth_tokens=point.depth_tokens,
            n_gpu_layers=placement.n_gpu_layers,
            devices=tuple(str(device) for device in self._devices) if placement.n_gpu_layers else (),
            threads=options.threads[0],
            speed=speed,
            settled=self._settings.precision.settled(speed),
            binding=None,
            arguments=tuple(replace(options, repetitions=len(batches[0])).arguments()),
        )

    # --- the binding ---------------------------------------------------------------------------------

    def _python_options(self, options: BenchOptions, threads: ThreadChoice) -> dict[str, Any] | None:
        """For ``Llama``; None when it cannot do the same, or is not asked to."""
        if not self._settings.binding:
            return None
        if why_not := binding.impossible(options):
            self._remark(why_not)
            return None
        return binding.default_options(options, threads.generation, threads.prompt)

    def _with_binding(
        self,
        figures: Sequence[SpeedFigure],
        taken: _Taken,
        options: BenchOptions,
        python: dict[str, Any] | None,
        *,
        explore: bool,
    ) -> list[SpeedFigure]:
        """The figures with those of llama-cpp-python, as far as there are any."""
        found = {
            point: binding_rate(point.tokens, batches) for point, batches in taken.python.items() if batches
        }
        if python is None or not found:
            return list(figures)
        matching = binding.matching_options(options, python, self._points)
        doubtful = [
            figure.point
            for figure in figures
            if figure.point in found and binding.differs_inside(figure.speed, found[figure.point])
        ]
        matched: dict[Point, BindingRate] = {}
        if explore and doubtful and matching != python:
            matched = self._explore(doubtful, options, matching)
        noise = pooled_deviation([figure.speed for figure in figures])
        return [
            replace(
                figure,
                binding=BindingFigure(
                    speed=own,
                    ratio=own.rate.median_tokens_per_s / figure.speed.median_tokens_per_s,
                    options=python,
                    matched=matched.get(figure.point),
                    explanation=binding.explain(
                        figure.speed, own, python, matched.get(figure.point), matching, noise
                    ),
                ),
            )
            if (own := found.get(figure.point))
            else figure
            for figure in figures
        ]

    def _explore(
        self, points: Sequence[Point], options: BenchOptions, matching: dict[str, Any]
    ) -> dict[Point, BindingRate]:
        """The binding's figures once more, with llama-bench's settings; a remark instead when that fails."""
        count = self._settings.precision.batch
        name = f"the binding's gap, {self._model.name}"
        batches: list[dict[Point, tuple[Timing, ...]]] = []
        try:
            for index in range(2):
                self._listener(Step(name, index, 2, "runs"))
                wanted = dict.fromkeys(points, count)
                batches.append(binding.measure(self._toolchain, self._model, wanted, options, matching))
        except GgqError as error:
            self._remark(f"The gap could not be looked into: {error.what}")
            return {}
        self._listener(Step(name, 2, 2, "runs"))
        return {point: binding_rate(point.tokens, [batch[point] for batch in batches]) for point in points}

    # --- words ---------------------------------------------------------------------------------------

    def _remark(self, text: str) -> None:
        if text and text not in self._remarks:
            self._remarks.append(text)

    def _remark_on_binding(self, error: GgqError) -> None:
        """It is done without then: llama-bench's figures are worth having."""
        last = error.why.splitlines()[-1:] or [error.what]
        self._remark(f"llama-cpp-python does not run the model: {last[0].strip().rstrip('.')}.")

    def _remark_on_precision(self, figures: Sequence[SpeedFigure], noise: float | None) -> None:
        if noise is not None and noise > NOISY:
            self._remark(
                f"This machine is noisy: repetitions differ by {noise:.0%} (standard deviation)."
                " Close other programs for sharper figures."
            )
        precision = self._settings.precision
        loose = sum(it.speed.relative_standard_error is not None and not it.settled for it in figures)
        if loose:
            self._remark(
                f"The error of {loose} of {len(figures)} figures stayed above {precision.target:.0%} after"
                f" {precision.most} repetitions or {precision.most_seconds:.0f} s of them."
            )

    def _count(self, done: int) -> None:
        self._done = done
        total = self._each * len(self._points) * len(self._placements) + (self._settings.threads == "auto")
        self._listener(Step(f"speed of {self._model.name}", done, total, "figures"))

    @property
    def _each(self) -> int:
        """Figures for each point: llama-bench's, and the binding's."""
        return 2 if self._settings.binding else 1


class _Taken:
    """The repetitions of one placement so far: by point, in batches."""

    def __init__(self, precision: Precision, points: Sequence[Point]) -> None:
        self._precision = precision
        self.bench: dict[Point, list[tuple[int, ...]]] = {point: [] for point in points}
        self.python: dict[Point, list[tuple[Timing, ...]]] = {point: [] for point in points}

    def wanted(self) -> dict[Point, int]:
        """How many more repetitions of llama-bench each point needs; without those that need none."""
        return self._wanted(self.bench)

    def wanted_of_python(self) -> dict[Point, int]:
        """The same of the binding."""
        times = {
            point: [tuple(timing.total_ns for timing in batch) for batch in batches]
            for point, batches in self.python.items()
        }
        return self._wanted(times)

    def settled_count(self, with_python: bool) -> int:
        """Figures that need no more."""
        done = len(self.bench) - len(self.wanted())
        return done + (len(self.python) - len(self.wanted_of_python()) if with_python else 0)

    def _wanted(self, times: Mapping[Point, Sequence[tuple[int, ...]]]) -> dict[Point, int]:
        counts = {
            point: self._precision.next_batch(rate(point.tokens, batches) if batches else None)
            for point, batches in times.items()
        }
        return {point: count for point, count in counts.items() if count}


def _only(point: Point, options: BenchOptions, threads: ThreadChoice) -> BenchOptions:
    """Options for this point alone."""
    is_prompt = point.test == "prompt"
    return replace(
        options,
        prompt_tokens=(point.tokens,) if is_prompt else (),
        generated_tokens=() if is_prompt else (point.tokens,),
        depths=(point.depth_tokens,),
        threads=(threads.prompt if is_prompt else threads.generation,),
    )


def _at_most(length: int | None, limit: int) -> tuple[int, ...]:
    return () if length is None else (min(length, limit),)

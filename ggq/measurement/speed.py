"""Tokens per second of a model on this machine: prompt and generation, by depth, threads and placement.

The figures are llama-bench's, repeated until their error is small; beside them what a Python user gets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from ggq.errors import DiskFull, GgqError, OutputProblem
from ggq.gguf import file as gguf_file
from ggq.gguf import names as gguf_names
from ggq.llamacpp import bench, binding_bench
from ggq.llamacpp.bench import BenchOptions, BenchResult
from ggq.llamacpp.offload import Offload
from ggq.llamacpp.threads import ThreadChoice, choose_threads, thread_candidates
from ggq.measurement import speed_tests
from ggq.measurement.binding_speed import BindingFigure, BindingRounds
from ggq.measurement.settings import SpeedSettings
from ggq.measurement.speed_tests import Point
from ggq.measurement.throughput import Rate, pooled_deviation, rate
from ggq.progress import Step
from ggq.records.environment import now
from ggq.records.journal import Journal
from ggq.session import Session
from ggq.system import hardware
from ggq.system.codec import Inlined

NOISY = 0.05  # a relative deviation between repetitions that a person should know of
_TRIAL_PROMPT_TOKENS, _TRIAL_GENERATED_TOKENS, _TRIAL_REPETITIONS = 128, 16, 3


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
    """A placement that could not be measured to its end, and why."""

    n_gpu_layers: int
    error: Annotated[GgqError, Inlined()]


@dataclass(frozen=True)
class SpeedResult:
    """All figures of a model.

    ``measured_at``: UTC; ``preset``: its type, by its name or its header; ``layer_count``: with the output
    layer; ``noise``: the relative standard deviation between repetitions, over all figures;
    ``remarks``: sentences that belong to the figures; ``failures``: what was asked for and is missing.
    """

    measured_at: str
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


def _ignore(part: SpeedResult) -> None:
    """Whoever waits for the result needs no parts of it."""


def measure(
    model: Path,
    settings: SpeedSettings | None = None,
    *,
    session: Session,
    journal: Journal | None = None,
    on_part: Callable[[SpeedResult], None] = _ignore,
) -> SpeedResult:
    """Measure the speed of a GGUF file (of several shards: any one of them names it).

    A placement that fails (memory, a lost RPC server) ends up in ``failures`` and the others are measured.
    ``journal``: keeps each batch of this model on this machine, and has those of a run that was broken off;
    ``on_part`` gets the result so far after each placement, and so the whole one last.

    Raises GgufProblem for what is no model, UsageProblem for what cannot be asked of it or of this machine
    (a context beyond the model's, layers on a GPU that is not there), and when there is no figure at all the
    error of the first placement: see ggq.llamacpp.bench.run.
    """
    return _Measurement(model, settings or SpeedSettings(), session, journal or Journal()).run(on_part)


class _Measurement:
    """One model being measured."""

    def __init__(
        self,
        model: Path,
        settings: SpeedSettings,
        session: Session,
        journal: Journal,
    ) -> None:
        self._gguf = gguf_file.read_model(model)
        self._settings = settings
        self._session = session
        self._journal = journal
        self._points = speed_tests.points(
            self._gguf,
            settings.prompt_tokens,
            settings.generated_tokens,
            settings.depths,
            quick=settings.quick,
        )
        self._devices = bench.devices(session.toolchain, settings.rpc)
        self._placements = speed_tests.placements(
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

    def run(self, on_part: Callable[[SpeedResult], None]) -> SpeedResult:
        self._count(0)
        threads = self._choose_threads()
        figures: list[SpeedFigure] = []
        result: SpeedResult | None = None
        for placement in self._placements:
            figures += self._measure_placement(placement, threads)
            if self._last_result is not None:
                result = self._result(figures, threads, self._last_result)
                on_part(result)
        if result is None:
            assert self._first_error is not None, "without an error there are figures"
            raise self._first_error
        return result

    def _result(
        self, figures: Sequence[SpeedFigure], threads: ThreadChoice, seen: BenchResult
    ) -> SpeedResult:
        noise = pooled_deviation([figure.speed for figure in figures])
        return SpeedResult(
            measured_at=now(),
            file=self._model.name,
            preset=gguf_names.parse_name(self._model.name).type or self._gguf.file_type,
            file_bytes=self._gguf.file_bytes,
            layer_count=speed_tests.layer_count(self._gguf),
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
            remarks=(*self._remarks, *self._remarks_on_precision(figures, noise)),
            failures=tuple(self._failures),
        )

    # --- threads -------------------------------------------------------------------------------------

    def _choose_threads(self) -> ThreadChoice:
        usable = hardware.usable_cores()
        asked = self._settings.threads
        if asked == "auto":
            return self._try_threads(thread_candidates(usable))
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
        found = self._run(options, 0)
        self._count(1)
        return choose_threads(found)

    # --- llama-bench ---------------------------------------------------------------------------------

    def _options(self, placement: Offload) -> BenchOptions:
        return BenchOptions(
            offload=placement,
            type_k=self._settings.type_k,
            type_v=self._settings.type_v,
            flash_attention=self._settings.flash_attention,
            load_mode=self._settings.load_mode,
        )

    def _run(self, options: BenchOptions, batch: int) -> tuple[BenchResult, ...]:
        """The batch of that number, of the journal where it has it."""
        return self._journal.once(
            {"llama-bench": asdict(options), "batch": batch},
            tuple[BenchResult, ...],
            lambda: bench.run(self._session.toolchain, self._model, options),
        )

    def _measure_placement(self, placement: Offload, threads: ThreadChoice) -> list[SpeedFigure]:
        options = self._options(placement)
        python = self._binding(options, threads)
        taken: dict[Point, list[tuple[int, ...]]] = {point: [] for point in self._points}
        failed = False
        try:
            self._measure_rounds(taken, options, threads, python)
        except (DiskFull, OutputProblem):
            raise  # the journal's: no placement is to blame
        except GgqError as error:
            failed = True
            self._first_error = self._first_error or error
            self._failures.append(Failure(placement.n_gpu_layers, error))
        speeds = {point: rate(point.tokens, batches) for point, batches in taken.items() if batches}
        beside = python.figures(speeds, explore=not failed) if python else {}
        return [
            self._figure(point, speed, placement, threads, len(taken[point][0]), beside.get(point))
            for point, speed in speeds.items()
        ]

    def _measure_rounds(
        self,
        taken: dict[Point, list[tuple[int, ...]]],
        options: BenchOptions,
        threads: ThreadChoice,
        python: BindingRounds | None,
    ) -> None:
        """A batch of each figure that is not settled, again and again: what slows the machine down for a
        while then falls on all of them, on the binding's too."""
        before = self._done
        while True:
            wanted = speed_tests.batches_wanted(self._settings.precision, taken)
            for point, count in wanted.items():
                one = replace(_only(point, options, threads), repetitions=count)
                (self._last_result,) = self._run(one, len(taken[point]))
                taken[point].append(self._last_result.samples_ns)
            took_python = python is not None and python.take()
            if not wanted and not took_python:
                break
            done = len(taken) - len(speed_tests.batches_wanted(self._settings.precision, taken))
            self._count(before + done + (python.done_count if python else 0))
        self._count(before + len(self._points) * self._each)

    def _figure(
        self,
        point: Point,
        speed: Rate,
        placement: Offload,
        threads: ThreadChoice,
        repetitions: int,
        beside: BindingFigure | None,
    ) -> SpeedFigure:
        """``repetitions``: of the first batch."""
        options = _only(point, self._options(placement), threads)
        return SpeedFigure(
            test=point.test,
            tokens=point.tokens,
            depth_tokens=point.depth_tokens,
            n_gpu_layers=placement.n_gpu_layers,
            devices=tuple(str(device) for device in self._devices) if placement.n_gpu_layers else (),
            threads=options.threads[0],
            speed=speed,
            settled=self._settings.precision.settled(speed),
            binding=beside,
            arguments=tuple(replace(options, repetitions=repetitions).arguments()),
        )

    def _binding(self, options: BenchOptions, threads: ThreadChoice) -> BindingRounds | None:
        """None when the binding cannot do the same, or is not asked to."""
        if not self._settings.binding or self._gguf.is_encoder:
            return None
        if why_not := binding_bench.impossible(options):
            self._remark(why_not)
            return None
        return BindingRounds(
            self._session, self._model, self._points, options, threads, self._settings.precision,
            journal=self._journal, remark=self._remark,
        )  # fmt: skip

    # --- words ---------------------------------------------------------------------------------------

    def _remark(self, text: str) -> None:
        if text not in self._remarks:
            self._remarks.append(text)

    def _remarks_on_precision(self, figures: Sequence[SpeedFigure], noise: float | None) -> list[str]:
        found = []
        if noise is not None and noise > NOISY:
            found.append(
                f"This machine is noisy: repetitions differ by {noise:.0%} (standard deviation)."
                " Close other programs for sharper figures."
            )
        precision = self._settings.precision
        loose = sum(it.speed.relative_standard_error is not None and not it.settled for it in figures)
        if loose:
            found.append(
                f"The error of {loose} of {len(figures)} figures stayed above {precision.target:.0%} after"
                f" {precision.most} repetitions or {precision.most_seconds:.0f} s of them."
            )
        return found

    def _count(self, done: int) -> None:
        self._done = done
        total = self._each * len(self._points) * len(self._placements) + (self._settings.threads == "auto")
        self._session.listener(Step(f"speed of {self._model.name}", done, total, "figures"))

    @property
    def _each(self) -> int:
        """Figures for each point: llama-bench's, and the binding's."""
        return 2 if self._settings.binding and not self._gguf.is_encoder else 1


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

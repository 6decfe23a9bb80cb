"""The main job with the preset left to ggq: recommended beforehand, made, and measured afterwards."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ggq import hub, pipeline, presets, reference
from ggq.bench import memory as bench_memory
from ggq.bench.memory import MemorySettings
from ggq.errors import CheckpointProblem, ConversionProblem, GgqError
from ggq.foresee import DEFAULT_PRESETS, PlanSettings
from ggq.llamacpp import toolchain as toolchains
from ggq.llamacpp.serving import Serving
from ggq.llamacpp.toolchain import Toolchain
from ggq.pipeline import PipelineResult, Settings
from ggq.plan.account import Account
from ggq.plan.hollow import hollow_model
from ggq.plan.memory import MemoryForecast
from ggq.plan.speed import RateForecast, timed
from ggq.progress import Listener, Notice, Step, silent
from ggq.recommend import Limits, Recommendation, recommend

WORD = "auto"
BUDGET_S = 30.0
STEP = "measure"
# Filling a long context would take longer than the job.
_CONTEXT, _REPETITIONS = 512, 2


@dataclass(frozen=True)
class Outcome:
    """A figure foretold and measured: bytes of the file or of RAM, or tokens/s of a prompt or of generation
    (None: not foretold). ``setting``: under which it holds."""

    what: str
    setting: str
    foretold: float | None
    measured: float
    relative_error: float | None = None


@dataclass(frozen=True)
class Automatic:
    """``outcomes``: what became of the forecasts; fewer where measuring failed, which is told and no more."""

    recommendation: Recommendation
    result: PipelineResult
    outcomes: tuple[Outcome, ...]


def foretell(
    model: str,
    *,
    limits: Limits | None = None,
    revision: str | None = None,
    offline: bool = False,
    catalogue: presets.Catalogue | None = None,
    toolchain: Toolchain | None = None,
    listener: Listener = silent,
) -> Recommendation:
    """Which preset to make of ``model``; one that can only be planned after its download is downloaded.

    Raises as ``recommend`` and ``hub.download`` do.
    """

    def ask(what: str | Path, revision: str | None) -> Recommendation:
        return recommend(
            what, DEFAULT_PRESETS, limits, PlanSettings(speed_budget_s=BUDGET_S), revision=revision,
            offline=offline, catalogue=catalogue, toolchain=toolchain, listener=listener,
        )  # fmt: skip

    try:
        return ask(model, revision)
    except (CheckpointProblem, ConversionProblem):
        ref = reference.parse_reference(model, revision)
        if ref.kind != "hub":
            raise
        listener(Notice("This model can only be planned after its download."))
        fetched = hub.download(ref, offline=offline, listener=listener)
        return ask(f"{ref.repo_id}@{fetched.commit}", None)


def make(
    model: str,
    chosen: Recommendation,
    outdir: Path | None = None,
    settings: Settings | None = None,
    *,
    revision: str | None = None,
    offline: bool = False,
    catalogue: presets.Catalogue | None = None,
    toolchain: Toolchain | None = None,
    listener: Listener = silent,
) -> Automatic:
    """Make the recommended preset as ``pipeline.convert_and_quantize`` does, and measure it.

    Raises what that raises. What cannot be measured is told and left out.
    """
    toolchain = toolchain or toolchains.find()
    ref = reference.parse_reference(model, revision)
    (preset,) = (catalogue or presets.load()).resolve([chosen.chosen.preset])
    account = Account(hollow_model(ref, offline=offline, toolchain=toolchain, listener=listener))
    load = chosen.serving.load
    foretold = account.memory(preset, replace(load, context_tokens=min(_CONTEXT, load.context_tokens)))
    result = pipeline.convert_and_quantize(
        model, [chosen.chosen.preset], outdir, settings, revision=revision, offline=offline,
        catalogue=catalogue, toolchain=toolchain, listener=listener,
    )  # fmt: skip
    (file,) = result.files
    outcomes = [Outcome("file", "", chosen.chosen.file_bytes, file.file_bytes)]
    runs = (partial(_memory, chosen.serving, foretold), partial(_speed, chosen))
    for done, measure in enumerate(runs):
        listener(Step(STEP, done, 2, "runs"))
        try:
            outcomes += measure(file.paths[0], toolchain)
        except GgqError as problem:
            listener(Notice(f"Not measured: {problem}", "warning"))
    listener(Step(STEP, 2, 2, "runs"))
    return Automatic(chosen, result, tuple(outcomes))


def _memory(serving: Serving, foretold: MemoryForecast, file: Path, toolchain: Toolchain) -> list[Outcome]:
    """A load with a short context, filled."""
    settings = MemorySettings(
        contexts=(foretold.context_tokens,),
        cache_types=((foretold.type_k, foretold.type_v),),
        load_modes=(serving.load_mode,),
        offload=serving.load.offload,
    )
    (cell,) = bench_memory.measure(file, settings, toolchain=toolchain).cells
    if cell.measured is None:
        return []
    where = f"context {foretold.context_tokens:,}, load mode {serving.load_mode}"
    resident = foretold.resident_bytes(serving.load_mode)
    return [Outcome("RAM", where, resident, cell.measured.peaks.resident_bytes)]


def _speed(chosen: Recommendation, file: Path, toolchain: Toolchain) -> list[Outcome]:
    serving, forecast = chosen.serving, chosen.chosen.load.speed
    taken = timed(toolchain, file, serving.load, serving.load.offload, serving.threads, _REPETITIONS)

    def outcome(what: str, foretold: RateForecast | None, seconds: tuple[float, ...]) -> Outcome:
        return Outcome(
            what,
            f"{serving.threads} threads",
            foretold.tokens_per_s if foretold else None,
            1 / statistics.median(seconds),
            foretold.relative_error if foretold else None,
        )

    return [
        outcome("prompt", forecast.prompt if forecast else None, taken.prompt_s),
        outcome("generation", forecast.generation if forecast else None, taken.generation_s),
    ]

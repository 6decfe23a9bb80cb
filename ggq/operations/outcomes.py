"""What was predicted of a file, measured after it was made."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ggq.errors import GgqError
from ggq.estimation.estimator import Account
from ggq.estimation.hollow_model import HollowModel, hollow_model
from ggq.estimation.speed import RateEstimate
from ggq.estimation.speed_meter import timed
from ggq.llamacpp.server import Serving
from ggq.llamacpp.words import CacheType
from ggq.measurement import memory as bench_memory
from ggq.measurement.settings import MemorySettings, Placement
from ggq.measurement.words import MeasuredLoadMode
from ggq.model_ref import ModelRef
from ggq.operations.recommend_types import Recommendation
from ggq.presets.catalogue import Preset
from ggq.progress import Notice, Step
from ggq.session import Session

STEP = "measure"
# Filling a long context would take longer than the job.
_CONTEXT, _REPETITIONS = 512, 2


@dataclass(frozen=True)
class Outcome:
    """A figure predicted and measured: bytes of the file or of RAM, or tokens/s of a prompt or of generation
    (None: not predicted). ``setting``: under which it holds."""

    what: str
    setting: str
    predicted: float | None
    measured: float
    relative_error: float | None = None


def measure(
    ref: ModelRef, preset: Preset, predicted: Recommendation, file: Path, file_bytes: int, session: Session
) -> tuple[Outcome, ...]:
    """Each figure of a recommendation beside what the file does. What cannot be measured is told and left
    out."""
    outcomes = [Outcome("file", "", predicted.chosen.file_bytes, file_bytes)]
    opened = partial(hollow_model, ref, session)
    runs = (partial(_memory, predicted.serving, opened, preset), partial(_speed, predicted))
    for done, run in enumerate(runs):
        session.listener(Step(STEP, done, 2, "runs"))
        try:
            outcomes += run(file, session)
        except GgqError as problem:
            session.listener(Notice(f"Not measured: {problem}", "warning"))
    session.listener(Step(STEP, 2, 2, "runs"))
    return tuple(outcomes)


def _memory(
    serving: Serving, opened: Callable[[], HollowModel], preset: Preset, file: Path, session: Session
) -> list[Outcome]:
    """A load with a short context, filled; predicted of the hollow model, as the choice was."""
    hollow = opened()
    load = serving.load
    load = replace(load, context_tokens=min(_CONTEXT, load.context_tokens))
    try:
        predicted = Account(hollow).memory(preset, load)
    finally:
        hollow.release(preset)
    settings = MemorySettings(
        contexts=(load.context_tokens,),
        types_k=(CacheType(load.type_k),),
        types_v=(CacheType(load.type_v),),
        load_modes=(MeasuredLoadMode(serving.load_mode),),
        placement=Placement(exactly=load.offload),
    )
    (cell,) = bench_memory.measure(file, settings, session=Session(session.toolchain)).cells
    if cell.measured is None:
        return []
    where = f"context {load.context_tokens:,}, load mode {serving.load_mode}"
    resident = predicted.resident_bytes(serving.load_mode)
    return [Outcome("RAM", where, resident, cell.measured.peaks.resident_bytes)]


def _speed(chosen: Recommendation, file: Path, session: Session) -> list[Outcome]:
    serving, estimate, threads = chosen.serving, chosen.chosen.load.speed, chosen.plan.threads
    assert threads is not None, "it is of this machine"
    taken = timed(session.toolchain, file, serving.load, threads, chosen.chosen.file_bytes, _REPETITIONS)

    def outcome(what: str, count: int, predicted: RateEstimate | None, seconds: tuple[float, ...]) -> Outcome:
        return Outcome(
            what,
            f"threads: {count}",
            predicted.tokens_per_s if predicted else None,
            1 / statistics.median(seconds),
            predicted.relative_error if predicted else None,
        )

    return [
        outcome("prompt", threads.prompt, estimate.prompt if estimate else None, taken.prompt_s),
        outcome(
            "generation", threads.generation, estimate.generation if estimate else None, taken.generation_s
        ),
    ]

"""The main job with the preset left to ggq: recommended in advance, made, and measured afterwards."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ggq import hub, model_ref
from ggq.errors import DoesNotFit, GgqError, NeedsWeights
from ggq.estimation.estimator import Account
from ggq.estimation.hollow_model import HollowModel, hollow_model
from ggq.estimation.speed import RateEstimate
from ggq.estimation.speed_meter import timed
from ggq.gguf import names as gguf_names
from ggq.llamacpp import toolchain as toolchains
from ggq.llamacpp.server import Serving
from ggq.llamacpp.toolchain import Toolchain
from ggq.llamacpp.words import CacheType
from ggq.measurement import memory as bench_memory
from ggq.measurement.settings import MemorySettings, Placement
from ggq.measurement.words import MeasuredLoadMode
from ggq.model_ref import ModelRef
from ggq.operations import convert_and_quantize
from ggq.operations.convert_and_quantize import PipelineResult, Settings
from ggq.operations.plan import DEFAULT_PRESETS, PlanSettings
from ggq.operations.recommend import Limits, Recommendation, recommend
from ggq.presets import catalogue as presets
from ggq.presets.catalogue import Preset
from ggq.progress import Listener, Notice, Step, silent
from ggq.records.manifest import Manifest
from ggq.session import Session
from ggq.system import files

WORD = "auto"
BUDGET_S = 30.0
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


@dataclass(frozen=True)
class Automatic:
    """``outcomes``: what became of the estimates; fewer where measuring failed, which is told and no more."""

    recommendation: Recommendation
    result: PipelineResult
    outcomes: tuple[Outcome, ...]


def chosen_before(model: str, outdir: Path | None = None, *, revision: str | None = None) -> str | None:
    """The preset that an earlier run chose for ``model``, to be made in the same folder.

    Raises UsageProblem, OutputProblem (a manifest that cannot be read).
    """
    ref = model_ref.parse_reference(model, revision)
    folder, name = _place(ref, outdir)
    return Manifest.of(name, folder).chosen_presets.get(_identity(ref))


def predict(
    model: str,
    preset: str | None = None,
    *,
    limits: Limits | None = None,
    revision: str | None = None,
    offline: bool = False,
    download: bool = True,
    catalogue: presets.Catalogue | None = None,
    toolchain: Toolchain | None = None,
    listener: Listener = silent,
) -> Recommendation:
    """Which preset to make of ``model`` (``preset``: the only one in question).

    A model that can only be planned after its download is downloaded.
    Raises as ``recommend`` and ``hub.download`` do; without ``download`` NeedsWeights instead.
    """
    names = DEFAULT_PRESETS if preset is None else (preset,)

    def ask(what: str | Path, revision: str | None) -> Recommendation:
        try:
            return recommend(
                what, names, limits, PlanSettings(speed_budget_s=BUDGET_S), revision=revision,
                offline=offline, catalogue=catalogue, toolchain=toolchain, listener=listener,
            )  # fmt: skip
        except DoesNotFit as problem:
            raise DoesNotFit(
                problem.what,
                problem.why,
                f"{problem.next_step} `ggq recommend --ctx` tries others; here, --preset NAME makes a"
                " file for another machine all the same.",
            ) from problem

    try:
        return ask(model, revision)
    except NeedsWeights as problem:
        ref = model_ref.parse_reference(model, revision)
        if not download:
            raise NeedsWeights(
                problem.what,
                f"{problem.why} So the preset can only be chosen after the download.",
                f"Name one with --preset, or run `ggq download {shlex.quote(str(ref))}` first.",
            ) from problem
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

    The choice is written down first (see ``chosen_before``). Raises what the pipeline raises. What cannot be
    measured is told and left out.
    """
    settings = settings or Settings()
    toolchain = toolchain or toolchains.find()
    ref = model_ref.parse_reference(model, revision)
    (preset,) = (catalogue or presets.load()).resolve([chosen.chosen.preset])
    _remember(ref, outdir, preset, force=settings.force)
    result = convert_and_quantize.convert_and_quantize(
        model, [chosen.chosen.preset], outdir, settings, revision=revision, offline=offline,
        catalogue=catalogue, toolchain=toolchain, listener=listener,
    )  # fmt: skip
    (file,) = result.files
    outcomes = [Outcome("file", "", chosen.chosen.file_bytes, file.size.file_bytes)]
    opened = partial(hollow_model, ref, Session(toolchain, offline=offline, listener=listener))
    runs = (partial(_memory, chosen.serving, opened, preset), partial(_speed, chosen))
    for done, measure in enumerate(runs):
        listener(Step(STEP, done, 2, "runs"))
        try:
            outcomes += measure(file.paths[0], toolchain)
        except GgqError as problem:
            listener(Notice(f"Not measured: {problem}", "warning"))
    listener(Step(STEP, 2, 2, "runs"))
    return Automatic(chosen, result, tuple(outcomes))


def _place(ref: ModelRef, outdir: Path | None) -> tuple[Path, str]:
    """The folder of the files, and the model's name in theirs, as the pipeline has them."""
    if ref.kind == "gguf" and ref.path is not None:
        return outdir or ref.path.parent, gguf_names.parse_name(ref.path.name).model
    name = convert_and_quantize.model_name(ref)
    return outdir or Path(name), name


def _identity(ref: ModelRef) -> str:
    return ref.repo_id if ref.path is None else str(ref.path.resolve())


def _remember(ref: ModelRef, outdir: Path | None, preset: Preset, *, force: bool) -> None:
    """Raises OutputProblem, also where the preset's file would overwrite one of the user's; DiskFull."""
    folder, name = _place(ref, outdir)
    with files.lock(files.make_folder(folder)):
        manifest = Manifest.of(name, folder)
        if manifest.chosen_presets.get(_identity(ref)) != preset.name:
            manifest.claim((gguf_names.output_name(name, preset.name),), force=force)
            manifest.choose(_identity(ref), preset.name)


def _memory(
    serving: Serving, opened: Callable[[], HollowModel], preset: Preset, file: Path, toolchain: Toolchain
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
    (cell,) = bench_memory.measure(file, settings, session=Session(toolchain)).cells
    if cell.measured is None:
        return []
    where = f"context {load.context_tokens:,}, load mode {serving.load_mode}"
    resident = predicted.resident_bytes(serving.load_mode)
    return [Outcome("RAM", where, resident, cell.measured.peaks.resident_bytes)]


def _speed(chosen: Recommendation, file: Path, toolchain: Toolchain) -> list[Outcome]:
    serving, estimate, threads = chosen.serving, chosen.chosen.load.speed, chosen.plan.threads
    assert threads is not None, "it is of this machine"
    taken = timed(toolchain, file, serving.load, threads, chosen.chosen.file_bytes, _REPETITIONS)

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

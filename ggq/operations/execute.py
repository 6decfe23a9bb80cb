"""A job plan at work: resumable steps over a manifest beside the outputs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ggq.conversion.settings import Verify
from ggq.model_ref import ModelRef
from ggq.operations import auto_preset, outcomes
from ggq.operations.base import GivenBase, own_base
from ggq.operations.base_estimate import BaseEstimate
from ggq.operations.convert_step import ConvertedBase
from ggq.operations.fetch_checkpoint import LocalCheckpoint, downloaded_checkpoint, streamed_checkpoint
from ggq.operations.job_plan import JobPlan
from ggq.operations.make_files import MakeFiles
from ggq.operations.outcomes import Outcome
from ggq.operations.prepare import prepare
from ggq.operations.preset_files import QuantizedFile
from ggq.operations.workspace import Job
from ggq.progress import Listener, Notice
from ggq.quantization.recipe import without_imatrix
from ggq.session import Session
from ggq.system import files

# Of sizes that are estimated from nominal bits: embeddings may be small, and a checkpoint may hold 32 bits a
# weight. What is known exactly is refused exactly.
_LEAST = 0.85 / 2


@dataclass(frozen=True)
class PipelineResult:
    """``base`` is None when the 16-bit GGUF was not kept, now or before; ``verification``: what the
    conversion was checked for and what was seen (empty when a GGUF was given); ``outcomes``: what became of a
    recommendation's figures, fewer where measuring failed, which is told."""

    model: str
    base: Path | None
    files: tuple[QuantizedFile, ...]
    manifest: Path
    verification: Mapping[str, Any]
    outcomes: tuple[Outcome, ...] = ()


def execute(plan: JobPlan, session: Session) -> PipelineResult:
    """Do what was planned. Every finished step is recorded; the same job goes on where an earlier run was
    stopped, and makes the same bytes. Raises any GgqError."""
    made = _make(plan, session)
    if plan.choice is None or plan.choice.recommendation is None:
        return made
    (file,) = made.files
    measured = outcomes.measure(
        plan.request.model, plan.choice.preset, plan.choice.recommendation, file.paths[0],
        file.size.file_bytes, session,
    )  # fmt: skip
    return replace(made, outcomes=measured)


def _make(plan: JobPlan, session: Session) -> PipelineResult:
    settings = plan.request.settings
    _refuse(plan)
    with ExitStack() as stack:
        job = stack.enter_context(Job(plan.model, plan.outdir, session, force=settings.force))
        if job.manifest.state != plan.seen:  # by another run, while this one waited
            plan = prepare(plan.request, session)
            _refuse(plan)
        _require_room(plan)
        if plan.choice is not None:
            auto_preset.remember(
                plan.choice, plan.request.model, job.manifest, plan.files[0].name, force=settings.force
            )
        if isinstance(plan.source, GivenBase):
            own_base(job.manifest, plan.source, force=settings.force)
            made = MakeFiles(job, plan).make_all(plan.source)
            return PipelineResult(plan.model, plan.source.path, made, job.manifest.path, verification={})
        job.manifest.own(plan.source.identity, force=settings.force)
        given = _checkpoint(plan, plan.source, session, stack)
        job.manifest.own(given.identity, force=settings.force)
        base = ConvertedBase(job, given, plan.source.outtype, settings.verify.value, keep=settings.keep_base)
        made = MakeFiles(job, plan).make_all(base)
        if settings.keep_base:
            base.keep()
        else:
            base.remove()
        if not base.converted:  # else it was told
            _tell_unchecked(base.findings, settings.verify, session.listener)
        return PipelineResult(plan.model, base.kept, made, job.manifest.path, base.findings)


def _refuse(plan: JobPlan) -> None:
    """What a dry run tells, and a run does not begin with. Raises UsageProblem."""
    for preset, file in zip(plan.presets, plan.files, strict=True):
        if file.size.needs_imatrix and not plan.makes_imatrix:
            raise without_imatrix(preset)


def _require_room(plan: JobPlan) -> None:
    """Raises DiskFull where one disk must hold the download and the files, and cannot."""
    if not (plan.download_bytes and plan.shares_disk):
        return
    files_bytes = plan.needed_bytes - plan.kept_bytes
    files.require_space(
        plan.outdir,
        plan.download_bytes + max(0, files_bytes if plan.is_exact else int(_LEAST * files_bytes)),
        f"the download of {plan.request.model} and the files that are made of it",
        "put one of them on another disk (--outdir, HF_HOME), or give --stream, which keeps no weights",
    )


def _checkpoint(plan: JobPlan, source: BaseEstimate, session: Session, stack: ExitStack) -> LocalCheckpoint:
    """The checkpoint, here or opened as a stream."""
    if source.checkpoint is None and plan.request.settings.stream:
        return stack.enter_context(streamed_checkpoint(_pinned(plan.request.model, source), session))
    return fetch(plan.request.model, source, session)


def fetch(ref: ModelRef, source: BaseEstimate, session: Session) -> LocalCheckpoint:
    """The checkpoint of the very commit that was planned, downloaded where it is not here. Raises
    HubProblem, DiskFull."""
    return source.checkpoint or downloaded_checkpoint(_pinned(ref, source), session)


def _pinned(ref: ModelRef, source: BaseEstimate) -> ModelRef:
    return replace(ref, revision=source.identity["commit"])


def _tell_unchecked(findings: Mapping[str, Any], verify: Verify, listener: Listener) -> None:
    """What the conversion of an earlier run was not checked for."""
    if findings.get("level") == Verify.OFF.value:
        if verify != Verify.OFF:
            how = "--keep-base makes the 16-bit GGUF, and checks it"
            listener(Notice(f"The conversion of an earlier run was not checked: {how}.", "warning"))
        return
    for what, key in (("conversion", "why_not"), ("tokenizer", "tokenizer_why_not")):
        if why_not := findings.get(key):
            words = f"The {what} of an earlier run was not compared with transformers: {why_not}."
            listener(Notice(words, "warning"))

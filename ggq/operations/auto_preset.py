"""The preset that nobody named: the one that is recommended, or that an earlier run chose here."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from ggq import hub
from ggq.errors import DoesNotFit, NeedsWeights
from ggq.model_ref import ModelRef
from ggq.operations.plan_settings import PlanSettings
from ggq.operations.recommend import recommend
from ggq.operations.recommend_types import Recommendation
from ggq.presets.catalogue import Preset
from ggq.progress import Notice
from ggq.records.manifest import Manifest
from ggq.session import Session

BUDGET_S = 30.0


@dataclass(frozen=True)
class AutoChoice:
    """``recommendation`` None: of a preset that was chosen before nothing can be predicted now;
    ``remembered``: an earlier run chose it here."""

    preset: Preset
    recommendation: Recommendation | None
    remembered: bool


def identity(ref: ModelRef) -> str:
    """What a manifest calls the model that a preset was chosen for."""
    return ref.repo_id if ref.path is None else str(ref.path.resolve())


def choose(ref: ModelRef, manifest: Manifest, session: Session, *, force: bool, download: bool) -> AutoChoice:
    """Which preset to make of a model in the manifest's folder. ``force``: choose again.

    A model that can only be planned after its download is downloaded; without ``download``, NeedsWeights.
    Raises as ``recommend`` and ``hub.download`` do.
    """
    before = None if force else manifest.chosen_presets.get(identity(ref))
    try:
        found = _predict(ref, before, session, download=download)
    except (DoesNotFit, NeedsWeights) as problem:
        if before is None:
            raise
        session.listener(Notice(f"Nothing is predicted of {before}: {problem.why}", "warning"))
        found = None
    name = before or (found.chosen.preset if found else "")
    (preset,) = session.catalogue.resolve([name])
    return AutoChoice(preset, found, remembered=before is not None)


def _predict(ref: ModelRef, preset: str | None, session: Session, *, download: bool) -> Recommendation:
    """``preset``: the only one in question."""

    def ask(what: ModelRef) -> Recommendation:
        try:
            return recommend(what, preset, settings=PlanSettings(speed_budget_s=BUDGET_S), session=session)
        except DoesNotFit as problem:
            raise DoesNotFit(
                problem.what,
                problem.why,
                f"{problem.next_step} `ggq recommend -c` tries others; here, --preset NAME makes a"
                " file for another machine all the same.",
            ) from problem

    try:
        return ask(ref)
    except NeedsWeights as problem:
        if not download:
            raise NeedsWeights(
                problem.what,
                f"{problem.why} So the preset can only be chosen after the download.",
                f"Name one with --preset, or run `ggq download {shlex.quote(str(ref))}` first.",
            ) from problem
        session.listener(Notice("This model can only be planned after its download."))
        fetched = hub.download(ref, offline=session.offline, listener=session.listener)
        return ask(replace(ref, revision=fetched.commit))


def remember(choice: AutoChoice, ref: ModelRef, manifest: Manifest, name: str, *, force: bool) -> None:
    """Write the choice down: another day it might be another. ``name``: of the preset's file. Raises
    OutputProblem, also where that file would overwrite one of the user's; DiskFull."""
    if manifest.chosen_presets.get(identity(ref)) != choice.preset.name:
        manifest.claim((name,), force=force)
        manifest.choose(identity(ref), choice.preset.name)


def place(ref: ModelRef, name: str, outdir: Path | None) -> Path:
    """The folder of a job's files: the one asked for, beside a GGUF, or one of the model's name here."""
    if outdir is not None:
        return outdir
    return ref.path.parent if ref.kind == "gguf" and ref.path is not None else Path(name)

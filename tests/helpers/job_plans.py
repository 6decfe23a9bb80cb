"""What a job would do, as a dry run has it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ggq.operations.job_plan import JobPlan
from ggq.operations.prepare import prepare
from ggq.operations.quantize import quantize_request
from ggq.operations.request import Settings, request
from ggq.session import Session


def plan_convert_and_quantize(
    model: str | Path,
    presets: Iterable[str],
    outdir: Path | None = None,
    settings: Settings | None = None,
    session: Session | None = None,
) -> JobPlan:
    session = session or Session()
    asked = request(model, presets, outdir, settings or Settings(), session)
    return prepare(asked, session, download=False)


def plan_quantize(
    base: Path,
    presets: Iterable[str],
    outdir: Path | None = None,
    settings: Settings | None = None,
    session: Session | None = None,
) -> JobPlan:
    session = session or Session()
    return prepare(quantize_request(base, presets, outdir, settings or Settings(), session), session)

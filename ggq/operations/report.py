"""``ggq report``: what was made and measured, on one page."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from ggq.errors import OutputProblem
from ggq.operations.recommend_types import TASTES, Preference
from ggq.publishing import report as page
from ggq.publishing.choice import Choice, choices
from ggq.publishing.collection import Collection, gather
from ggq.publishing.report_charts import charts
from ggq.settings import Option, filled
from ggq.system import files

_HEAD_BYTES = 4096


@dataclass(frozen=True)
class ReportSettings:
    """Where the page goes. ``force``: also over a file that is no report of ggq's."""

    output: Annotated[Path, Option("-o", "--output", help="The page.")] = Path("report.html")
    force: Annotated[bool, Option("--force", help="Overwrite a file that is not a report of ggq's.")] = False


@dataclass(frozen=True)
class ReportResult:
    """``report``: the page; ``page_bytes``: its size; ``chart_count``: of charts on it."""

    report: Path
    page_bytes: int
    models: tuple[str, ...]
    machine_count: int
    chart_count: int
    choices: tuple[Choice, ...]


def report(
    folders: str | Path | Sequence[str | Path], settings: ReportSettings | None = None, **keywords: Any
) -> ReportResult:
    """Write a page of what folders (or records) hold. ``keywords``: fields of the settings.

    Raises UsageProblem where nothing was measured, OutputProblem, DiskFull.
    """
    settings = filled(ReportSettings, settings, keywords)
    places = [folders] if isinstance(folders, (str, Path)) else list(folders)
    found = gather([Path(place) for place in places])
    chosen = measured_choices(found)
    target = settings.output
    if target.is_dir():
        target = target / "report.html"
    if not settings.force:
        _refuse_to_overwrite(target)
    files.make_folder(target.parent, "choose another file with -o/--output")
    made_at = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    page.write(page.render(found, chosen, made_at), target)
    return ReportResult(
        report=target,
        page_bytes=target.stat().st_size,
        models=found.models,
        machine_count=len(found.machines),
        chart_count=len(charts(found)),
        choices=tuple(chosen),
    )


def measured_choices(found: Collection) -> list[Choice]:
    """Of every model and machine the file that ``ggq recommend`` would prefer, by its measured figures."""
    return choices(found, TASTES[Preference.BALANCED].score)


def _refuse_to_overwrite(target: Path) -> None:
    if not target.exists():
        return
    with files.explain_os_error(target), target.open("rb") as stream:
        ours = b'name="generator" content="ggq ' in stream.read(_HEAD_BYTES)
    if not ours:
        raise OutputProblem(
            f"{target} exists already.",
            "It is not a report of ggq's.",
            "Choose another file with -o/--output, or give --force to overwrite it.",
        )

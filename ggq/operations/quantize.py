"""``ggq quantize``: a 16-bit GGUF over presets."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ggq.model_ref import ModelRef
from ggq.operations.execute import PipelineResult, execute
from ggq.operations.prepare import prepare
from ggq.operations.request import DEFAULT_PRESETS, Request, Settings, request
from ggq.session import Session
from ggq.settings import filled


def quantize(
    base: str | Path,
    presets: str | Iterable[str] = DEFAULT_PRESETS,
    outdir: str | Path | None = None,
    settings: Settings | None = None,
    *,
    session: Session | None = None,
    **keywords: Any,
) -> PipelineResult:
    """Quantize a 16-bit GGUF over presets, into ``outdir`` (default: beside it). ``keywords``: fields of
    ``Settings``, in place of those of ``settings``.

    Raises UsageProblem, GgufProblem, OutputProblem, DiskFull, ToolFailed, ToolchainProblem.
    """
    session = session or Session()
    asked = quantize_request(base, presets, outdir, filled(Settings, settings, keywords), session)
    return execute(prepare(asked, session), session)


def quantize_request(
    base: str | Path,
    presets: str | Iterable[str],
    outdir: str | Path | None,
    settings: Settings,
    session: Session,
) -> Request:
    """The request of a GGUF, and of nothing else. Raises UsageProblem."""
    return request(ModelRef("gguf", path=Path(base)), presets, outdir, settings, session)

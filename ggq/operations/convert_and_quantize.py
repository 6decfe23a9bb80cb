"""``ggq convert-and-quantize``: from a model's name to files that run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ggq.model_ref import ModelRef
from ggq.operations.execute import PipelineResult, execute
from ggq.operations.prepare import prepare
from ggq.operations.request import Settings, request
from ggq.session import Session
from ggq.settings import filled


def convert_and_quantize(
    model: str | Path | ModelRef,
    presets: str | Iterable[str] | None = None,
    outdir: str | Path | None = None,
    settings: Settings | None = None,
    *,
    session: Session | None = None,
    **keywords: Any,
) -> PipelineResult:
    """Download, convert, verify and quantize ``model`` into ``outdir`` (default: a folder of its name here).

    Without ``presets`` the one that ``recommend`` names for this machine is made, and what was predicted of
    it is measured. ``keywords``: fields of ``Settings``, in place of those of ``settings``. Every finished
    step is recorded; the same call goes on where an earlier one was stopped, and makes the same bytes.
    Raises any GgqError.
    """
    session = session or Session()
    asked = request(model, presets, outdir, filled(Settings, settings, keywords), session)
    return execute(prepare(asked, session), session)

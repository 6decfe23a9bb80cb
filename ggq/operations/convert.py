"""``ggq convert``: a checkpoint to a GGUF that is proven to be the same model."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ggq import conversion, model_ref
from ggq.checkpoint import checkpoint
from ggq.conversion import Conversion, default_name, refuse_existing, resolve_outtype
from ggq.conversion.settings import ConvertSettings, Outtype
from ggq.errors import UsageProblem
from ggq.model_ref import ModelRef
from ggq.operations.base_estimate import BaseEstimate, estimate_base
from ggq.operations.execute import fetch
from ggq.operations.fetch_checkpoint import model_name
from ggq.session import Session
from ggq.settings import filled
from ggq.system import files


@dataclass(frozen=True)
class ConvertPlan:
    """What ``convert`` will do: ``download_bytes`` first, then ``output`` (``is_named``: by the user)
    of ``file_bytes`` (``exact``, or estimated from the number of parameters). ``free_bytes``: of the
    output's disk."""

    output: Path
    is_named: bool
    outtype: str
    file_bytes: int
    exact: bool
    download_bytes: int
    free_bytes: int
    model: ModelRef = field(metadata={"internal": True})
    settings: ConvertSettings = field(metadata={"internal": True})
    source: BaseEstimate = field(metadata={"internal": True})


def convert(
    model: str | Path | ModelRef,
    output: str | Path | None = None,
    settings: ConvertSettings | None = None,
    *,
    session: Session | None = None,
    **keywords: Any,
) -> Conversion:
    """Convert a checkpoint (downloaded, where it is on the Hub), and compare the result with it.

    ``output`` None: NAME-TYPE.gguf here. ``keywords``: fields of ``ConvertSettings``, in place of those of
    ``settings``. Raises any GgqError.
    """
    session = session or Session()
    settings = filled(ConvertSettings, settings, keywords)
    return execute_convert(prepare_convert(model_ref.reference(model), output, settings, session), session)


def prepare_convert(
    ref: ModelRef,
    output: str | Path | None,
    settings: ConvertSettings,
    session: Session,
    *,
    exact: bool = False,
) -> ConvertPlan:
    """What a conversion will do; it refuses what can be refused before any work. Writes nothing but a hollow
    model, in the cache.

    ``exact``: ask for the size of what is on this disk, too. It stays an estimate of a projector, of a GGUF
    in q8_0, and of a model of which only the weights can tell. Raises every GgqError that can be known.
    """
    if ref.kind == "gguf":
        raise UsageProblem(
            f"{ref} is a GGUF already.", "", f"Quantize it: ggq quantize {shlex.quote(str(ref))}"
        )
    hollow = not settings.mmproj and settings.outtype != Outtype.Q8_0 and (exact or ref.path is None)
    found = estimate_base(ref, settings.outtype.value, session, hollow=hollow)
    default = default_name(model_name(ref), found.outtype, mmproj=settings.mmproj)
    named, output = output is not None, Path(output or default)
    refuse_existing(output, force=settings.force)
    folder = output.absolute().parent
    files.refuse_unwritable(folder)
    return ConvertPlan(
        output=output,
        is_named=named,
        outtype=found.outtype,
        file_bytes=found.base_bytes,
        exact=found.base is not None,
        download_bytes=found.download_bytes,
        free_bytes=files.free_bytes(folder),
        model=ref,
        settings=settings,
        source=found,
    )


def execute_convert(plan: ConvertPlan, session: Session) -> Conversion:
    """Do what was planned. Raises any GgqError."""
    given, settings = fetch(plan.model, plan.source, session), plan.settings
    output = plan.output
    if not plan.is_named and plan.source.base is None:  # the type was a guess before the download
        kind = resolve_outtype(checkpoint.read(given.folder), settings.outtype.value)
        output = Path(default_name(model_name(plan.model), kind, mmproj=settings.mmproj))
    return conversion.convert(given.folder, output, settings, source=given.source, session=session)

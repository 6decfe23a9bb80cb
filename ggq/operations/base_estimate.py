"""A checkpoint before its conversion: what a dry run says of its base, to the byte where that can be had."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ggq import hub
from ggq.checkpoint import checkpoint
from ggq.conversion import BITS_PER_WEIGHT, resolve_outtype
from ggq.errors import NeedsWeights
from ggq.estimation.hollow_model import hollow_model
from ggq.gguf import file as gguf_file
from ggq.gguf.file import GgufFile
from ggq.model_ref import ModelRef
from ggq.operations.fetch_checkpoint import LocalCheckpoint, announced, parameters_ahead
from ggq.session import Session


@dataclass(frozen=True)
class BaseEstimate:
    """A base before its conversion. ``base``: hollow, and ``base_bytes`` exact (None: only the weights can
    tell, and they are estimated from the number of parameters); ``identity``: the manifest's; ``checkpoint``:
    on the disk, or None, and then the Hub's ``digests`` of its files."""

    identity: Mapping[str, Any]
    outtype: str
    base: GgufFile | None
    base_bytes: int
    parameter_count: int
    download_bytes: int
    checkpoint: LocalCheckpoint | None
    digests: Mapping[str, str] | None


def estimate_base(ref: ModelRef, outtype: str, session: Session, *, hollow: bool = True) -> BaseEstimate:
    """Ask the converter about the base, by a hollow one; or, without ``hollow``, estimate.

    Raises HubProblem, CheckpointProblem, ConversionProblem, UsageProblem, ToolchainProblem.
    """
    local = ahead = digests = None
    if ref.path is not None:
        local = LocalCheckpoint(ref.path)
        resolved, parameters = _of_folder(local, outtype)
        identity: Mapping[str, Any] = local.identity
    else:
        ahead = hub.preview(ref, offline=session.offline, listener=session.listener)
        identity, digests = {"repo_id": ahead.repo_id, "commit": ahead.commit}, announced(ahead.files)
        resolved, parameters = "bf16" if outtype == "auto" else outtype, parameters_ahead(ahead)
    found = BaseEstimate(
        identity=identity,
        outtype=resolved,
        base=None,
        base_bytes=int(parameters * BITS_PER_WEIGHT[resolved] / 8),
        parameter_count=parameters,
        download_bytes=ahead.needed_bytes if ahead else 0,
        checkpoint=local,
        digests=digests,
    )
    return with_header(found, ref, outtype, session) if hollow else found


def with_header(found: BaseEstimate, ref: ModelRef, outtype: str, session: Session) -> BaseEstimate:
    """The estimate with what a hollow base tells, if there can be one. ``outtype``: as it was asked for, so
    that a plan's hollow model is the same. Raises as ``estimate_base``."""
    base = _hollow_base(ref, outtype, session)
    return found if base is None else with_base(found, base)


def with_base(found: BaseEstimate, base: GgufFile) -> BaseEstimate:
    """The estimate with what a base's header tells."""
    return replace(
        found,
        outtype=(base.file_type or found.outtype).lower(),
        base=base,
        base_bytes=base.file_bytes,
        parameter_count=base.parameter_count,
    )


def _of_folder(given: LocalCheckpoint, outtype: str) -> tuple[str, int]:
    """The type of the base, and the number of parameters."""
    found = checkpoint.read(given.folder)
    checkpoint.require_convertible(found)
    _ = given.unchanged  # from now on
    return resolve_outtype(found, outtype), found.likely_parameter_count


def _hollow_base(ref: ModelRef, outtype: str, session: Session) -> GgufFile | None:
    """None: it can only be planned after its download."""
    try:
        made = hollow_model(ref, session, outtype=outtype)
    except NeedsWeights:
        return None
    return gguf_file.read_all(made.base)

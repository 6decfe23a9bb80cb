"""A checkpoint before its conversion: what a dry run says of its base, to the byte where that can be had."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggq import hub
from ggq.checkpoint import checkpoint
from ggq.conversion import BITS_PER_WEIGHT, default_name, refuse_existing, resolve_outtype
from ggq.errors import NeedsWeights
from ggq.estimation.hollow_model import hollow_model
from ggq.gguf import file as gguf_file
from ggq.gguf.file import GgufFile
from ggq.llamacpp import toolchain as toolchains
from ggq.llamacpp.toolchain import Toolchain
from ggq.model_ref import ModelRef
from ggq.operations.convert_and_quantize import model_name, parameters_ahead
from ggq.operations.convert_step import LocalCheckpoint, announced
from ggq.progress import Listener, silent
from ggq.session import Session
from ggq.system import files


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


def estimate_base(
    ref: ModelRef,
    outtype: str,
    *,
    offline: bool,
    toolchain: Toolchain,
    listener: Listener = silent,
    hollow: bool = True,
) -> BaseEstimate:
    """Ask the converter about the base, by a hollow one; or, without ``hollow``, estimate.

    Raises HubProblem, CheckpointProblem, ConversionProblem, UsageProblem, ToolchainProblem.
    """
    local = ahead = digests = None
    if ref.path is not None:
        local = LocalCheckpoint(ref.path)
        identity: Mapping[str, Any] = local.identity
        resolved, parameters = _of_folder(ref.path, outtype)
    else:
        ahead = hub.preview(ref, offline=offline, listener=listener)
        identity, digests = {"repo_id": ahead.repo_id, "commit": ahead.commit}, announced(ahead.files)
        resolved, parameters = "bf16" if outtype == "auto" else outtype, parameters_ahead(ahead)
    # As it was asked for: a plan's hollow model is then the same.
    base = _hollow_base(ref, outtype, offline, toolchain, listener) if hollow else None
    if base is not None:
        resolved = (base.file_type or resolved).lower()
    return BaseEstimate(
        identity=identity,
        outtype=resolved,
        base=base,
        base_bytes=base.file_bytes if base else int(parameters * BITS_PER_WEIGHT[resolved] / 8),
        parameter_count=base.parameter_count if base else parameters,
        download_bytes=ahead.needed_bytes if ahead else 0,
        checkpoint=local,
        digests=digests,
    )


def _of_folder(folder: Path, outtype: str) -> tuple[str, int]:
    """The type of the base, and the number of parameters."""
    found = checkpoint.read(folder)
    checkpoint.require_convertible(found)
    return resolve_outtype(found, outtype), found.likely_parameter_count


def _hollow_base(
    ref: ModelRef, outtype: str, offline: bool, toolchain: Toolchain, listener: Listener
) -> GgufFile | None:
    """None: it can only be planned after its download."""
    try:
        made = hollow_model(ref, Session(toolchain, offline=offline, listener=listener), outtype=outtype)
    except NeedsWeights:
        return None
    return gguf_file.read_all(made.base)


@dataclass(frozen=True)
class ConvertPlan:
    """What ``convert`` would do: ``download_bytes`` first, then ``output`` of ``file_bytes`` (``exact``, or
    estimated from the number of parameters). ``free_bytes``: of the output's disk."""

    output: Path
    outtype: str
    file_bytes: int
    exact: bool
    download_bytes: int
    free_bytes: int


def plan_convert(
    ref: ModelRef,
    output: Path | None = None,
    *,
    outtype: str = "auto",
    mmproj: bool = False,
    offline: bool = False,
    force: bool = False,
    toolchain: Toolchain | None = None,
    listener: Listener = silent,
) -> ConvertPlan:
    """What a conversion would do. Writes nothing but a hollow model, in the cache; and refuses what the
    conversion would refuse before any work. Raises as that does.

    Not exact: a projector, a base in q8_0, and a model of which only the weights can tell.
    """
    hollow = not mmproj and outtype.lower() != "q8_0"
    found = estimate_base(
        ref,
        outtype.lower(),
        offline=offline,
        toolchain=toolchain or toolchains.find(),
        listener=listener,
        hollow=hollow,
    )
    output = output or Path(default_name(model_name(ref), found.outtype, mmproj=mmproj))
    refuse_existing(output, force=force)
    folder = output.absolute().parent
    files.refuse_unwritable(folder)
    return ConvertPlan(
        output=output,
        outtype=found.outtype,
        file_bytes=found.base_bytes,
        exact=found.base is not None,
        download_bytes=found.download_bytes,
        free_bytes=files.free_bytes(folder),
    )

"""Checkpoint -> base GGUF -> quantized GGUFs: resumable steps over a manifest beside the outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggq import gguf_file, gguf_names, presets, reference
from ggq.bases import (
    ConvertedBase,
    GivenBase,
    LocalCheckpoint,
    checkpoint_of,
    own_base,
    streamed_checkpoint,
)
from ggq.job import Job
from ggq.llamacpp import toolchain as toolchains
from ggq.llamacpp.toolchain import Toolchain
from ggq.making import Making, QuantizedFile, Settings, claim, refuse_beforehand
from ggq.progress import Listener, silent
from ggq.quantize import choice
from ggq.quantize.recipe import check, refuse_quantized

__all__ = [
    "DEFAULT_PRESETS",
    "PipelineResult",
    "QuantizedFile",
    "Settings",
    "convert_and_quantize",
    "model_name",
    "quantize",
]

DEFAULT_PRESETS = ("Q4_K_M",)


@dataclass(frozen=True)
class PipelineResult:
    """``base`` is None when it was not kept, now or before; ``verification``: what the conversion was checked
    for and what was seen (empty when a GGUF was given)."""

    model: str
    base: Path | None
    files: tuple[QuantizedFile, ...]
    manifest: Path
    verification: Mapping[str, Any]


def quantize(
    base: Path,
    preset_names: Iterable[str] = DEFAULT_PRESETS,
    outdir: Path | None = None,
    settings: Settings | None = None,
    *,
    catalogue: presets.Catalogue | None = None,
    toolchain: Toolchain | None = None,
    listener: Listener = silent,
) -> PipelineResult:
    """Quantize a base GGUF over presets, into ``outdir`` (default: beside the base).

    Raises UsageProblem, GgufProblem, OutputProblem, DiskFull, ToolFailed, ToolchainProblem.
    """
    chosen = (catalogue or presets.load()).resolve(preset_names)
    whole = gguf_file.read_all(base)
    refuse_quantized(whole)
    settings = settings or Settings()
    check(settings.options)
    choice.check(settings.engine)
    base = whole.path
    name = gguf_names.parse_name(base.name).model
    with Job(name, outdir or base.parent, toolchain, listener, force=settings.force) as job:
        given = GivenBase(base, listener)
        own_base(job.manifest, given, force=settings.force)
        claim(job.manifest, name, settings, chosen, whole.paths, converted=False)
        made = Making(job, settings).quantize_all(given, chosen)
        return PipelineResult(name, base, made, job.manifest.path, verification={})


def convert_and_quantize(
    model: str,
    preset_names: Iterable[str] = DEFAULT_PRESETS,
    outdir: Path | None = None,
    settings: Settings | None = None,
    *,
    revision: str | None = None,
    offline: bool = False,
    catalogue: presets.Catalogue | None = None,
    toolchain: Toolchain | None = None,
    listener: Listener = silent,
) -> PipelineResult:
    """Download, convert, verify and quantize ``model`` into ``outdir`` (default: a folder of its name here).

    Every finished step is recorded; the same call goes on where an earlier one was stopped, and makes the
    same bytes. Raises any GgqError.
    """
    settings = settings or Settings()
    catalogue = catalogue or presets.load()
    chosen = catalogue.resolve(preset_names)
    ref = reference.parse_reference(model, revision)
    refuse_beforehand(settings, ref, chosen)
    if ref.kind == "gguf" and ref.path is not None:
        return quantize(
            ref.path,
            preset_names,
            outdir,
            settings,
            catalogue=catalogue,
            toolchain=toolchain,
            listener=listener,
        )
    toolchain = toolchain or toolchains.find()
    name = model_name(ref)
    with ExitStack() as stack:
        given = _checkpoint(ref, settings, offline, listener, stack)
        job = stack.enter_context(Job(name, outdir or Path(name), toolchain, listener, force=settings.force))
        job.manifest.own(given.identity, force=settings.force)
        base = ConvertedBase(job, given, settings.outtype, settings.verify, keep=settings.keep_base)
        claim(job.manifest, name, settings, chosen, (base.path,), converted=True)
        made = Making(job, settings).quantize_all(base, chosen)
        if settings.keep_base:
            base.keep()
        else:
            base.remove()
        return PipelineResult(name, base.kept, made, job.manifest.path, base.findings)


def _checkpoint(
    ref: reference.ModelRef, settings: Settings, offline: bool, listener: Listener, stack: ExitStack
) -> LocalCheckpoint:
    """On the disk, or for a stream its headers alone."""
    if settings.stream:
        return stack.enter_context(streamed_checkpoint(ref, offline, listener))
    return checkpoint_of(ref, offline, listener)


def model_name(ref: reference.ModelRef) -> str:
    """The model's name as files carry it: the repository's, or the folder's."""
    return ref.repo_id.rsplit("/", 1)[-1] if ref.path is None else ref.path.resolve().name

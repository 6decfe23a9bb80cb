"""Checkpoint -> base GGUF -> quantized GGUFs: resumable steps over a manifest beside the outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggq import hub, model_ref
from ggq.checkpoint import checkpoint
from ggq.conversion.source import model_name as folder_name
from ggq.gguf import file as gguf_file
from ggq.gguf import names as gguf_names
from ggq.llamacpp import toolchain as toolchains
from ggq.llamacpp.toolchain import Toolchain
from ggq.operations.convert_step import (
    ConvertedBase,
    GivenBase,
    LocalCheckpoint,
    downloaded_checkpoint,
    own_base,
    streamed_checkpoint,
)
from ggq.operations.quantize import Making, QuantizedFile
from ggq.operations.request import Settings, claim, file_names, nominal_bytes, refuse_beforehand, spare
from ggq.operations.workspace import Job
from ggq.presets import catalogue as presets
from ggq.presets.catalogue import Preset
from ggq.progress import Listener, Notice, silent
from ggq.quantization import engine
from ggq.quantization.recipe import check, refuse_quantized
from ggq.system import files

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
OTHER_FOLDER = "Choose another folder with --outdir."
KEEP_BASE = "Leave that preset out; --keep-base keeps the base itself."
_BASE_BITS = 16.0
# Of what is estimated from nominal bits at 16 bits a weight: embeddings may be small, and weights may have 32
# bits. What is known exactly, later, is refused exactly.
_LEAST = 0.85 / 2


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
    engine.check(settings.engine)
    base = whole.path
    name = gguf_names.parse_name(base.name).model
    with Job(name, outdir or base.parent, toolchain, listener, force=settings.force) as job:
        given = GivenBase(base, listener)
        names = file_names(name, settings, chosen, len(whole.paths))
        spare(base, job.outdir, names, OTHER_FOLDER)
        own_base(job.manifest, given, force=settings.force)
        claim(job.manifest, name, settings, names)
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
    ref = model_ref.parse_reference(model, revision)
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
    outdir = outdir or Path(name)
    with ExitStack() as stack:
        # First what can be told from a look, then the folder, then the download.
        ahead = _look_ahead(ref, settings, offline, listener, stack)
        job = stack.enter_context(Job(name, outdir, toolchain, listener, force=settings.force))
        job.manifest.own(ahead.identity, force=settings.force)
        names = file_names(name, settings, chosen)
        claim(job.manifest, name, settings, names)
        given = ahead.given
        if given is None:
            _require_room(ahead, outdir, [preset for preset in chosen if not job.has(preset.name)])
            given = downloaded_checkpoint(ref, offline, listener)
            job.manifest.own(given.identity, force=settings.force)
        base = ConvertedBase(job, given, settings.outtype, settings.verify, keep=settings.keep_base)
        spare(base.path, outdir, names, KEEP_BASE)
        made = Making(job, settings).quantize_all(base, chosen)
        if settings.keep_base:
            base.keep()
        else:
            base.remove()
        if not base.converted:  # else it was told
            _tell_unchecked(base.findings, settings.verify, listener)
        return PipelineResult(name, base.kept, made, job.manifest.path, base.findings)


def _tell_unchecked(findings: Mapping[str, Any], verify: str, listener: Listener) -> None:
    """What the conversion of an earlier run was not checked for."""
    if findings.get("level") == "off":
        if verify.lower() != "off":
            how = "--keep-base makes the base, and checks it"
            listener(Notice(f"The conversion of an earlier run was not checked: {how}.", "warning"))
        return
    for what, key in (("conversion", "why_not"), ("tokenizer", "tokenizer_why_not")):
        if why_not := findings.get(key):
            words = f"The {what} of an earlier run was not compared with transformers: {why_not}."
            listener(Notice(words, "warning"))


@dataclass(frozen=True)
class _Ahead:
    """A checkpoint before its download: ``identity`` is the manifest's; ``given``: what is here already, or
    for a stream its headers (None: ``download`` is still to come)."""

    identity: Mapping[str, Any]
    given: LocalCheckpoint | None
    download: hub.Preview | None = None


def _look_ahead(
    ref: model_ref.ModelRef, settings: Settings, offline: bool, listener: Listener, stack: ExitStack
) -> _Ahead:
    """Raises HubProblem, CheckpointProblem."""
    if settings.stream:
        streamed = stack.enter_context(streamed_checkpoint(ref, offline, listener))
        return _Ahead(streamed.identity, streamed)
    if ref.path is not None:
        checkpoint.require_convertible(checkpoint.read(ref.path))
        local = LocalCheckpoint(ref.path)
        return _Ahead(local.identity, local)
    found = hub.preview(ref, offline=offline, listener=listener)
    return _Ahead({"repo_id": found.repo_id, "commit": found.commit}, None, found)


def _require_room(ahead: _Ahead, outdir: Path, missing: Sequence[Preset]) -> None:
    """Raises DiskFull where one disk must hold the download and the files, and cannot."""
    found = ahead.download
    assert found is not None, "it is still to come"
    if not found.needed_bytes or not files.same_disk(found.cache, outdir):
        return
    parameters = parameters_ahead(found)
    estimated = sum(nominal_bytes(preset, parameters, _BASE_BITS) for preset in missing)
    files.require_space(
        outdir,
        found.needed_bytes + int(_LEAST * estimated),
        f"the download of {found.repo_id} and the files that are made of it",
        "put one of them on another disk (--outdir, HF_HOME), or give --stream, which keeps no weights",
    )


def parameters_ahead(found: hub.Preview) -> int:
    """How many parameters a repository has, as its weights' bytes tell, at 16 bits each."""
    weights = hub.weight_files([file.path for file in found.files])
    return sum(file.file_bytes for file in found.files if file.path in weights) // 2


def model_name(ref: model_ref.ModelRef) -> str:
    """The model's name as files carry it: the repository's, or the folder's."""
    return ref.repo_id.rsplit("/", 1)[-1] if ref.path is None else folder_name(ref.path)

"""Checkpoint -> base GGUF -> quantized GGUFs: resumable steps over a manifest beside the outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ggq import gguf_file, gguf_names, presets, reference
from ggq.bases import ConvertedBase, GivenBase, LocalCheckpoint, checkpoint_of, streamed_checkpoint
from ggq.job import Job
from ggq.llamacpp import toolchain as toolchains
from ggq.llamacpp.toolchain import Toolchain
from ggq.making import Making, QuantizedFile, Settings, refuse_beforehand
from ggq.progress import Listener, silent
from ggq.quantize import choice
from ggq.quantize.choice import Choice, choose
from ggq.quantize.recipe import Recipe, ask, check, refuse_quantized
from ggq.records import base_model

__all__ = [
    "DEFAULT_PRESETS",
    "PipelineResult",
    "QuantizedFile",
    "Settings",
    "convert_and_quantize",
    "model_name",
    "quantize",
    "recipes",
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
        if not job.manifest.knows(given.known()[0]):
            # Else an earlier run made it here, whose source is the better answer.
            job.own(base_model(base))
        making = Making(job, settings)
        making.claim(chosen, whole.paths, "Choose another folder with --outdir.")
        made = making.quantize_all(given, chosen)
        return PipelineResult(name, base, made, job.manifest.path, verification={})


def recipes(
    base: Path,
    preset_names: Iterable[str] = DEFAULT_PRESETS,
    settings: Settings | None = None,
    *,
    catalogue: presets.Catalogue | None = None,
    toolchain: Toolchain | None = None,
) -> tuple[tuple[Recipe, Choice | None], ...]:
    """What ``quantize`` would make, asked of llama-quantize: exact bytes, types, fallbacks; and by which
    engine (None: a preset that needs an importance matrix, which is not there).

    Raises UsageProblem, GgufProblem, ToolFailed, ToolchainProblem.
    """
    settings = settings or Settings()
    choice.check(settings.engine)
    chosen = (catalogue or presets.load()).resolve(preset_names)
    whole = gguf_file.read_all(base)
    toolchain = toolchain or toolchains.find()
    asked = [ask(toolchain, whole, preset, settings.options) for preset in chosen]
    return tuple(
        (recipe, None if recipe.needs_imatrix else choose(settings.engine, toolchain, whole, recipe))
        for recipe in asked
    )


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
        job.own({"folder": str(given.folder.resolve())} if given.source is None else asdict(given.source))
        base = ConvertedBase(job, given, settings.outtype, settings.verify, keep=settings.keep_base)
        making = Making(job, settings)
        making.claim(chosen, (base.path,), "Leave that preset out; --keep-base keeps the base itself.")
        made = making.quantize_all(base, chosen)
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

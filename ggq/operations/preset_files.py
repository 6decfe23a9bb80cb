"""Presets' files in the manifest: which work makes them, and which an earlier run made already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ggq.llamacpp.tools import QuantizeOptions
from ggq.operations.job_plan import Options
from ggq.operations.request import Settings
from ggq.presets.catalogue import Preset
from ggq.progress import silent
from ggq.quantization.imatrix import Matrix
from ggq.quantization.imatrix import default_name as matrix_name
from ggq.quantization.imatrix_settings import ImatrixSettings
from ggq.quantization.one_pass import MADE_WITH
from ggq.quantization.recipe import SizeEstimate
from ggq.records.manifest import Manifest
from ggq.session import Session
from ggq.system import files


@dataclass(frozen=True)
class QuantizedFile:
    """What one preset made. ``paths`` are several for a split model; ``reused``: an earlier run made it,
    and it is still whole. ``made_with``: the presets of the one pass that took these ``seconds``, this one
    too; empty: llama-quantize made it alone."""

    preset: str
    paths: tuple[Path, ...]
    size: SizeEstimate
    seconds: float
    made_with: tuple[str, ...]
    reused: bool


def step_of(preset: Preset) -> str:
    """The manifest's step."""
    return f"quantize {preset.name}"


def recorded_options(preset: Preset, options: QuantizeOptions) -> dict[str, Any]:
    """The options as the manifest has them."""
    own = [f"{name}={kind}" for name, kind in preset.tensor_types.items()]
    return {
        "ftype": preset.ftype,
        "tensor_types": [*own, *options.tensor_types],
        "output_tensor_type": options.output_tensor_type,
        "token_embedding_type": options.token_embedding_type,
        "keep_split": options.keep_split,
        "imatrix": None if options.imatrix is None else str(options.imatrix),
        "imatrix_sha256": None if options.imatrix is None else files.sha256_file(options.imatrix),
    }


def made_before(
    manifest: Manifest, kept: Path, preset: Preset, options: QuantizeOptions, base: Sequence[str], tool: str
) -> dict[str, Path] | None:
    """Where the files of a preset lie that an earlier run made by the same work, each whole: beside the
    manifest, or still in ``kept``. None: it has to be made. ``base``: the names that records may call it."""
    step = step_of(preset)
    if step not in manifest.steps:
        return None
    recorded = recorded_options(preset, options)
    if not any(manifest.current(step, {"base": name}, recorded, tool) for name in base):
        return None
    found = {}
    for output in manifest.steps[step].outputs:
        place = next((it for it in (kept, manifest.folder) if output.is_whole_in(it)), None)
        if place is None:
            return None
        found[output.name] = place
    return found


def recorded_size(manifest: Manifest, preset: Preset) -> SizeEstimate:
    """What the record of a file says of its size."""
    record = manifest.steps[step_of(preset)]
    return SizeEstimate(
        file_bytes=sum(output.file_bytes for output in record.outputs),
        bits_per_weight=record.findings["bits_per_weight"],
        fallback_count=record.findings["fallback_count"],
        quantized_count=record.findings["quantized_count"],
        fallen_share=record.findings.get("fallen_share", 0.0),
    )


def quantized_file(manifest: Manifest, preset: Preset, *, reused: bool) -> QuantizedFile:
    """The file that a record is of."""
    record = manifest.steps[step_of(preset)]
    return QuantizedFile(
        preset=preset.name,
        paths=tuple(manifest.folder / output.name for output in record.outputs),
        size=recorded_size(manifest, preset),
        seconds=record.seconds,
        made_with=tuple(record.findings.get(MADE_WITH, ())),
        reused=reused,
    )


def with_made_matrix(
    manifest: Manifest,
    name: str,
    options: Options,
    settings: Settings,
    session: Session,
    base: Sequence[str],
) -> Options:
    """The options with the imatrix that an earlier run made of the base, if it did. ``base``: the
    names that records may call it."""
    matrix = matrix_of(manifest, name, options, settings, session, quiet=True)
    if not any(matrix.known(it) for it in base):
        return options
    return Options(replace(options.quantize, imatrix=matrix.path))


def matrix_of(
    manifest: Manifest,
    name: str,
    options: Options,
    settings: Settings,
    session: Session,
    *,
    quiet: bool = False,
) -> Matrix:
    """The imatrix of a job as a step of its manifest."""
    assert options.text is not None, "it was asked for"
    how = ImatrixSettings(threads=settings.threads, parse_special=settings.parse_special)
    listener = silent if quiet else session.listener
    return Matrix(
        manifest, matrix_name(name), options.text, how, session.toolchain, listener, any_settings=True
    )

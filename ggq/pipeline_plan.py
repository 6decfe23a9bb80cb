"""What the pipeline would do, without doing it: bytes to download, files, disk."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ggq import checkpoint, files, gguf_names, hub, presets, reference
from ggq.convert import BITS_PER_WEIGHT, default_name, resolve_outtype
from ggq.making import nominal_bytes, refuse_beforehand, without_base
from ggq.pipeline import DEFAULT_PRESETS, Settings, model_name, recipes
from ggq.presets import Preset


@dataclass(frozen=True)
class PlannedFile:
    """A preset's file before it is made. ``exact``: asked of llama-quantize; else reckoned from the nominal
    bits per weight, since there is no base GGUF yet to ask about, and ``engine`` is the one that was wanted
    (None: a preset that needs an importance matrix, which is not there)."""

    preset: str
    name: str
    file_bytes: int
    exact: bool
    engine: str | None
    exists: bool


@dataclass(frozen=True)
class PipelinePlan:
    """What a run would do: bytes to download (``is_streamed``: the weights are not kept), the base on the way
    (None: there is none), the files."""

    model: str
    outdir: Path
    download_bytes: int
    base_name: str | None
    base_bytes: int
    files: tuple[PlannedFile, ...]
    free_bytes: int
    is_streamed: bool = False

    @property
    def needed_bytes(self) -> int:
        """Disk that ``outdir`` must offer at the worst moment."""
        return self.base_bytes + sum(file.file_bytes for file in self.files if not file.exists)


def plan_convert_and_quantize(
    model: str,
    preset_names: Iterable[str] = DEFAULT_PRESETS,
    outdir: Path | None = None,
    settings: Settings | None = None,
    *,
    revision: str | None = None,
    offline: bool = False,
    catalogue: presets.Catalogue | None = None,
) -> PipelinePlan:
    """What ``convert_and_quantize`` would do with the same arguments. Writes nothing.

    Before there is a base GGUF, sizes are the parameter count times the preset's nominal bits; of a model
    that is not downloaded yet, the parameter count is taken from its bytes, at 16 bits each.
    """
    settings = settings or Settings()
    chosen = (catalogue or presets.load()).resolve(preset_names)
    ref = reference.parse_reference(model, revision)
    refuse_beforehand(settings, ref, chosen)
    name = model_name(ref)
    if ref.kind == "gguf" and ref.path is not None:
        asked = recipes(ref.path, preset_names, settings, catalogue=catalogue)
        name = gguf_names.parse_name(ref.path.name).model
        outdir = outdir or ref.path.parent
        planned = tuple(
            _planned(name, recipe.preset, recipe.file_bytes, outdir, chosen.engine if chosen else None, True)
            for recipe, chosen in asked
        )
        return PipelinePlan(name, outdir, 0, None, 0, planned, files.free_bytes(outdir))
    outdir = outdir or Path(name)
    download_bytes = 0
    outtype = settings.outtype.lower()
    if ref.path is not None:
        found = checkpoint.read(ref.path)
        checkpoint.require_convertible(found)
        parameters = found.parameter_count or found.weight_bytes // 2
        outtype = resolve_outtype(found, outtype)
    else:
        ahead = hub.preview(ref, offline=offline)
        download_bytes = ahead.needed_bytes
        weights = hub.weight_files([file.path for file in ahead.files])
        parameters = sum(file.file_bytes for file in ahead.files if file.path in weights) // 2
        outtype = "bf16" if outtype == "auto" else outtype
    bits = BITS_PER_WEIGHT[outtype]
    planned = tuple(
        _planned(name, preset, nominal_bytes(preset, parameters, bits), outdir, settings.engine, False)
        for preset in chosen
    )
    base_bytes, free = int(parameters * bits / 8), files.free_bytes(outdir)
    to_make = sum(file.file_bytes for file in planned if not file.exists)
    is_streamed = settings.stream and download_bytes > 0
    has_base = to_make > 0 and not is_streamed and not without_base(settings, base_bytes, to_make, free)
    return PipelinePlan(
        model=name,
        outdir=outdir,
        download_bytes=download_bytes,
        base_name=default_name(name, outtype) if has_base else None,
        base_bytes=base_bytes if has_base else 0,
        files=planned,
        free_bytes=free,
        is_streamed=is_streamed,
    )


def _planned(
    name: str, preset: Preset, file_bytes: int, outdir: Path, engine: str | None, exact: bool
) -> PlannedFile:
    file_name = gguf_names.output_name(name, preset.name)
    return PlannedFile(preset.name, file_name, file_bytes, exact, engine, (outdir / file_name).exists())

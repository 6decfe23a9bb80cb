"""What the pipeline would do, without doing it: bytes to download, files to the byte, disk."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ggq import checkpoint, files, gguf_file, gguf_names, hub, presets, reference
from ggq.bases import GivenBase, own_base
from ggq.convert import BITS_PER_WEIGHT, default_name, resolve_outtype
from ggq.errors import NeedsWeights
from ggq.gguf_file import GgufFile
from ggq.llamacpp import toolchain as toolchains
from ggq.llamacpp.toolchain import Toolchain
from ggq.making import claim, nominal_bytes, refuse_beforehand, without_base
from ggq.pipeline import DEFAULT_PRESETS, Settings, model_name
from ggq.plan.hollow import hollow_model
from ggq.presets import Preset
from ggq.progress import Listener, silent
from ggq.quantize.choice import choose
from ggq.quantize.recipe import ask
from ggq.records import Manifest
from ggq.reference import ModelRef


@dataclass(frozen=True)
class PlannedFile:
    """A preset's file before it is made, as QuantizedFile has it afterwards.

    ``exact``: asked of llama-quantize; else reckoned from the preset's nominal bits, since only the weights
    can tell more. ``engine`` is the one that makes it (None: it needs an importance matrix, which is not
    there), and ``why`` that is not the sweep. ``exists``: a file of ours has the name; it stays where it is
    of the same work.
    """

    preset: str
    name: str
    file_bytes: int
    exact: bool
    engine: str | None
    exists: bool
    bits_per_weight: float | None = None
    fallback_count: int | None = None
    quantized_count: int | None = None
    needs_imatrix: bool = False
    why: str = ""

    @property
    def mostly_fell_back(self) -> bool:
        return 2 * (self.fallback_count or 0) > (self.quantized_count or 0)


@dataclass(frozen=True)
class PipelinePlan:
    """What a run would do: bytes to download (``is_streamed``: the weights are not kept), the base on the way
    (None: there is none), the files. ``makes_imatrix``: the run makes an importance matrix first, without
    which the sizes are."""

    model: str
    outdir: Path
    download_bytes: int
    base_name: str | None
    base_bytes: int
    files: tuple[PlannedFile, ...]
    free_bytes: int
    is_streamed: bool
    makes_imatrix: bool

    @property
    def needed_bytes(self) -> int:
        """Disk that ``outdir`` must offer at the worst moment."""
        return self.base_bytes + _to_make(self.files)


def plan_quantize(
    base: Path,
    preset_names: Iterable[str] = DEFAULT_PRESETS,
    outdir: Path | None = None,
    settings: Settings | None = None,
    *,
    catalogue: presets.Catalogue | None = None,
    toolchain: Toolchain | None = None,
    listener: Listener = silent,
) -> PipelinePlan:
    """What ``quantize`` would do with the same arguments. Writes nothing, and refuses what that refuses.

    Raises UsageProblem, GgufProblem, OutputProblem, ToolFailed, ToolchainProblem.
    """
    settings = settings or Settings()
    chosen = (catalogue or presets.load()).resolve(preset_names)
    refuse_beforehand(settings, ModelRef("gguf", path=base), chosen)
    whole = gguf_file.read_all(base)
    name = gguf_names.parse_name(whole.path.name).model
    outdir = outdir or whole.path.parent
    files.refuse_unwritable(outdir)
    manifest = Manifest.of(name, outdir)
    own_base(manifest, GivenBase(whole.path, listener), force=settings.force)
    names = claim(manifest, name, settings, chosen, whole.paths, converted=False)
    planned = _asked(toolchain or toolchains.find(), whole, chosen, names, settings, outdir)
    return PipelinePlan(
        model=name,
        outdir=outdir,
        download_bytes=0,
        base_name=None,
        base_bytes=0,
        files=planned,
        free_bytes=files.free_bytes(outdir),
        is_streamed=False,
        makes_imatrix=settings.calibration is not None,
    )


def plan_convert_and_quantize(
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
) -> PipelinePlan:
    """What ``convert_and_quantize`` would do with the same arguments. Writes nothing but a hollow model, in
    the cache, of which llama-quantize is asked; and refuses what the run would refuse before it begins.

    Of a model that can only be planned after its download, sizes are the parameter count times the preset's
    nominal bits; the parameter count of what is not here is taken from its bytes, at 16 bits each.
    Raises GgqError as that does.
    """
    settings = settings or Settings()
    catalogue = catalogue or presets.load()
    chosen = catalogue.resolve(preset_names)
    ref = reference.parse_reference(model, revision)
    refuse_beforehand(settings, ref, chosen)
    if ref.kind == "gguf" and ref.path is not None:
        return plan_quantize(
            ref.path,
            preset_names,
            outdir,
            settings,
            catalogue=catalogue,
            toolchain=toolchain,
            listener=listener,
        )
    name = model_name(ref)
    outdir = outdir or Path(name)
    files.refuse_unwritable(outdir)
    toolchain = toolchain or toolchains.find()
    foreseen = _foreseen(ref, settings, offline, toolchain, listener)
    manifest = Manifest.of(name, outdir)
    manifest.own(foreseen.identity, force=settings.force)
    base_name = default_name(name, foreseen.outtype)
    names = claim(manifest, name, settings, chosen, (outdir / base_name,), converted=True)
    if foreseen.base is not None:
        planned = _asked(toolchain, foreseen.base, chosen, names, settings, outdir)
    else:
        bits = BITS_PER_WEIGHT[foreseen.outtype]
        planned = tuple(
            PlannedFile(
                preset.name,
                its_name,
                nominal_bytes(preset, foreseen.parameter_count, bits),
                exact=False,
                engine=settings.engine,
                exists=(outdir / its_name).exists(),
            )
            for preset, its_name in zip(chosen, names, strict=True)
        )
    free, to_make = files.free_bytes(outdir), _to_make(planned)
    is_streamed = settings.stream and foreseen.download_bytes > 0
    has_base = to_make > 0 and not is_streamed
    has_base = has_base and not without_base(settings, foreseen.base_bytes, to_make, free)
    return PipelinePlan(
        model=name,
        outdir=outdir,
        download_bytes=foreseen.download_bytes,
        base_name=base_name if has_base else None,
        base_bytes=foreseen.base_bytes if has_base else 0,
        files=planned,
        free_bytes=free,
        is_streamed=is_streamed,
        makes_imatrix=settings.calibration is not None,
    )


@dataclass(frozen=True)
class _Foreseen:
    """A checkpoint before its conversion: its ``base``, hollow (None: only its weights can tell)."""

    identity: dict[str, str]
    outtype: str
    base: GgufFile | None
    base_bytes: int
    parameter_count: int
    download_bytes: int


def _foreseen(
    ref: ModelRef, settings: Settings, offline: bool, toolchain: Toolchain, listener: Listener
) -> _Foreseen:
    identity = {"repo_id": ref.repo_id} if ref.path is None else {"folder": str(ref.path.resolve())}
    try:
        hollow = hollow_model(
            ref, outtype=settings.outtype, offline=offline, toolchain=toolchain, listener=listener
        )
    except NeedsWeights:
        return _reckoned(ref, identity, settings.outtype, offline)
    base = gguf_file.read_all(hollow.base)
    outtype = (base.file_type or "bf16").lower()
    return _Foreseen(identity, outtype, base, base.file_bytes, base.parameter_count, hollow.download_bytes)


def _reckoned(ref: ModelRef, identity: dict[str, str], outtype: str, offline: bool) -> _Foreseen:
    download_bytes = 0
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
        outtype = "bf16" if outtype.lower() == "auto" else outtype.lower()
    base_bytes = int(parameters * BITS_PER_WEIGHT[outtype] / 8)
    return _Foreseen(identity, outtype, None, base_bytes, parameters, download_bytes)


def _asked(
    toolchain: Toolchain,
    base: GgufFile,
    chosen: Sequence[Preset],
    names: Sequence[str],
    settings: Settings,
    outdir: Path,
) -> tuple[PlannedFile, ...]:
    """What llama-quantize says of each preset."""
    planned = []
    for preset, name in zip(chosen, names, strict=True):
        recipe = ask(toolchain, base, preset, settings.options)
        its = None if recipe.needs_imatrix else choose(settings.engine, toolchain, base, recipe)
        planned.append(
            PlannedFile(
                preset.name,
                name,
                recipe.file_bytes,
                exact=True,
                engine=its.engine if its else None,
                exists=(outdir / name).exists(),
                bits_per_weight=recipe.bits_per_weight,
                fallback_count=len(recipe.fallbacks),
                quantized_count=recipe.quantized_count,
                needs_imatrix=recipe.needs_imatrix,
                why=its.why if its else "",
            )
        )
    return tuple(planned)


def _to_make(planned: Sequence[PlannedFile]) -> int:
    return sum(file.file_bytes for file in planned if not file.exists)

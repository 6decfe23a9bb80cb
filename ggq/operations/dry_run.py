"""What the pipeline would do, without doing it: bytes to download, files to the byte, disk."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from ggq import hub, model_ref
from ggq.conversion import BITS_PER_WEIGHT, default_name
from ggq.gguf import file as gguf_file
from ggq.gguf import names as gguf_names
from ggq.gguf.file import GgufFile
from ggq.llamacpp import toolchain as toolchains
from ggq.llamacpp.toolchain import Toolchain
from ggq.llamacpp.tools import QuantizeOptions
from ggq.model_ref import ModelRef
from ggq.operations.base_estimate import BaseEstimate, estimate_base
from ggq.operations.convert_and_quantize import DEFAULT_PRESETS, KEEP_BASE, OTHER_FOLDER, Settings, model_name
from ggq.operations.convert_step import CONVERT, GivenBase, Work, own_base
from ggq.operations.quantize import made_before, not_from_a_stream, with_made_matrix
from ggq.operations.request import claim, file_names, nominal_bytes, refuse_beforehand, spare, without_base
from ggq.operations.workspace import kept_folder, tool_name
from ggq.presets import catalogue as presets
from ggq.presets.catalogue import Preset
from ggq.progress import Listener, silent
from ggq.quantization import engine as choice
from ggq.quantization import expected_imatrix
from ggq.quantization.engine import Choice, choose
from ggq.quantization.imatrix import default_name as matrix_name
from ggq.quantization.imatrix_coverage import Uncovered
from ggq.quantization.imatrix_file import Importance
from ggq.quantization.recipe import SizeEstimate, ask
from ggq.records.manifest import Manifest
from ggq.system import files, scratch


@dataclass(frozen=True)
class PlannedFile:
    """A preset's file before it is made, as QuantizedFile has it afterwards.

    ``exact``: asked of llama-quantize; else estimated from the preset's nominal bits, since only the weights
    can tell more. ``engine`` is the one that makes it (None: it needs an importance matrix, which is not
    there), and ``why`` that is not the sweep. ``uncovered``: tensors that the importance matrix does not
    know, and what they get instead. ``made``: an earlier run made it by the same work, and it is
    whole.
    """

    preset: str
    name: str
    size: SizeEstimate
    exact: bool
    made: bool
    engine: str | None
    why: str = ""
    uncovered: tuple[Uncovered, ...] = ()


@dataclass(frozen=True)
class PlannedBase:
    """The 16-bit base on the way to the presets; ``kept``: it stays beside them."""

    name: str
    file_bytes: int
    kept: bool


@dataclass(frozen=True)
class PipelinePlan:
    """What a run would do: bytes to download (``is_streamed``: the weights are not kept; ``shares_disk``: to
    the disk of ``outdir``), the base that it makes (None: it makes none), the files. ``makes_imatrix``: the
    run makes an importance matrix first, and the sizes are those with it."""

    model: str
    outdir: Path
    download_bytes: int
    base: PlannedBase | None
    files: tuple[PlannedFile, ...]
    free_bytes: int
    is_streamed: bool = False
    shares_disk: bool = False
    makes_imatrix: bool = False

    @property
    def needed_bytes(self) -> int:
        """Disk that ``outdir`` must offer at the worst moment."""
        base_bytes = self.base.file_bytes if self.base else 0
        return base_bytes + sum(file.size.file_bytes for file in self.files if not file.made)

    @property
    def missing_bytes(self) -> int:
        """Of the disk of ``outdir``; 0: there is enough."""
        download_bytes = self.download_bytes if self.shares_disk else 0
        return max(0, self.needed_bytes + download_bytes - self.free_bytes)


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
    """What ``quantize`` would do with the same arguments. Writes nothing, and refuses what that refuses
    before any work; but a preset without its importance matrix, and a disk too small, are told in the plan.

    Raises UsageProblem, GgufProblem, OutputProblem, ToolFailed, ToolchainProblem.
    """
    settings = settings or Settings()
    chosen = (catalogue or presets.load()).resolve(preset_names)
    refuse_beforehand(settings, ModelRef("gguf", path=base), chosen)
    whole = gguf_file.read_all(base)
    toolchain = toolchain or toolchains.find()
    name = gguf_names.parse_name(whole.path.name).model
    outdir = outdir or whole.path.parent
    files.refuse_unwritable(outdir)
    manifest = Manifest.of(name, outdir)
    names = file_names(name, settings, chosen, len(whole.paths))
    spare(whole.path, outdir, names, OTHER_FOLDER)
    given = GivenBase(whole.path, listener)
    own_base(manifest, given, force=settings.force)
    claim(manifest, name, settings, names)
    # Without records there is nothing to compare the base with.
    known = given.known() if manifest.steps else ()
    settings = with_made_matrix(manifest, name, settings, toolchain, known)
    look = _Look(manifest, name, settings, toolchain, known)
    return PipelinePlan(
        model=name,
        outdir=outdir,
        download_bytes=0,
        base=None,
        files=look.asked(whole, chosen, names),
        free_bytes=files.free_bytes(outdir),
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
    the cache, of which llama-quantize is asked; and refuses what the run would refuse before any work. A disk
    that is too small is told in the plan.

    Of a model that can only be planned after its download, sizes are the parameter count times the preset's
    nominal bits; the parameter count of what is not here is taken from its bytes, at 16 bits each.
    Raises GgqError as that does.
    """
    settings = settings or Settings()
    catalogue = catalogue or presets.load()
    chosen = catalogue.resolve(preset_names)
    ref = model_ref.parse_reference(model, revision)
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
    found = estimate_base(
        ref, settings.outtype.lower(), offline=offline, toolchain=toolchain, listener=listener
    )
    manifest = Manifest.of(name, outdir)
    manifest.own(found.identity, force=settings.force)
    names = file_names(name, settings, chosen)
    base = outdir / default_name(name, found.outtype)
    spare(base, outdir, names, KEEP_BASE)
    claim(manifest, name, settings, names)
    is_streamed = settings.stream and found.download_bytes > 0
    record = _record(found, manifest, tool_name(toolchain), settings, is_streamed=is_streamed)
    settings = with_made_matrix(manifest, name, settings, toolchain, record.names)
    look = _Look(manifest, name, settings, toolchain, record.names)
    if found.base is None:
        planned = look.estimated(found, chosen, names)
    else:
        planned = look.asked(found.base, chosen, names)
    if is_streamed:
        _refuse_in_stream(chosen, planned)
    free_bytes = files.free_bytes(outdir)
    # What the download leaves of one disk is what the run will find.
    shares_disk = not is_streamed and files.same_disk(hub.cache_dir(), outdir)
    left_bytes = free_bytes - (found.download_bytes if shares_disk else 0)
    to_make = [file for file in planned if not file.made]
    needs_base = settings.keep_base or any(file.engine == choice.TOOL for file in to_make)
    without = without_base(settings, found.base_bytes, sum(it.size.file_bytes for it in to_make), left_bytes)
    makes_base = not record.has_file and not is_streamed
    makes_base = makes_base and bool(settings.keep_base or (to_make and (needs_base or not without)))
    if makes_base:
        manifest.claim((base.name,), force=settings.force)
    return PipelinePlan(
        model=name,
        outdir=outdir,
        download_bytes=found.download_bytes,
        base=PlannedBase(base.name, found.base_bytes, kept=settings.keep_base) if makes_base else None,
        files=planned,
        free_bytes=free_bytes,
        is_streamed=is_streamed,
        shares_disk=shares_disk,
        makes_imatrix=settings.calibration is not None,
    )


def _refuse_in_stream(chosen: Sequence[Preset], planned: Sequence[PlannedFile]) -> None:
    for preset, file in zip(chosen, planned, strict=True):
        if file.exact and not file.made and file.engine == choice.TOOL:
            raise not_from_a_stream(preset, Choice(choice.TOOL, file.why))


@dataclass(frozen=True)
class _Record:
    """What is known of a conversion: the ``names`` of its base in records, and whether its file is there."""

    names: tuple[str, ...] = ()
    has_file: bool = False


def _record(
    found: BaseEstimate, manifest: Manifest, tool: str, settings: Settings, *, is_streamed: bool
) -> _Record:
    """That of an earlier conversion of the same, as the run would find it."""
    digests = None
    if CONVERT in manifest.steps:
        digests = found.checkpoint.digests() if found.checkpoint else found.digests
    if digests is None:
        return _Record()
    work = Work(digests, found.outtype, settings.verify, tool, unproven=is_streamed)
    record = work.record(manifest)
    has_file = record is not None and bool(record.outputs) and manifest.outputs_whole(CONVERT)
    return _Record(work.known(manifest), has_file)


class _Look:
    """Presets' files before they are made, and which of them an earlier run made by the same work.

    ``known``: names that records may call the base."""

    def __init__(
        self,
        manifest: Manifest,
        name: str,
        settings: Settings,
        toolchain: Toolchain,
        known: Sequence[str],
    ) -> None:
        self._manifest = manifest
        self._name = name
        self._kept = kept_folder(name, manifest.folder)
        self._settings = settings
        self._toolchain = toolchain
        self._known = known

    def asked(
        self, base: GgufFile, chosen: Sequence[Preset], names: Sequence[str]
    ) -> tuple[PlannedFile, ...]:
        """What llama-quantize says of each preset; with an importance matrix that is still to be made, as far
        as it can be known."""
        text, options, matrix = self._settings.calibration, self._settings.options, None
        with ExitStack() as stack:
            if text is not None:
                folder = stack.enter_context(scratch.folder("matrix"))
                target = self._manifest.folder / matrix_name(self._name)
                matrix = expected_imatrix.matrix(base, folder, target, text.path.name)
                options = replace(options, imatrix=matrix.file.path)
            return self._asked(base, chosen, names, options, matrix)

    def _asked(
        self,
        base: GgufFile,
        chosen: Sequence[Preset],
        names: Sequence[str],
        options: QuantizeOptions,
        matrix: Importance | None,
    ) -> tuple[PlannedFile, ...]:
        planned = []
        for preset, name in zip(chosen, names, strict=True):
            recipe = ask(self._toolchain, base, preset, options, matrix)
            its = None
            if not recipe.size.needs_imatrix:
                its = choose(self._settings.engine, self._toolchain, base, recipe)
            planned.append(
                PlannedFile(
                    preset.name,
                    name,
                    recipe.size,
                    exact=True,
                    made=self._is_made(preset),
                    engine=its.engine if its else None,
                    why=its.why if its else "",
                    uncovered=recipe.uncovered,
                )
            )
        return tuple(planned)

    def estimated(
        self, found: BaseEstimate, chosen: Sequence[Preset], names: Sequence[str]
    ) -> tuple[PlannedFile, ...]:
        """What the presets' nominal bits say."""
        bits = BITS_PER_WEIGHT[found.outtype]
        return tuple(
            PlannedFile(
                preset.name,
                name,
                SizeEstimate(
                    nominal_bytes(preset, found.parameter_count, bits), preset.bits_per_weight or bits
                ),
                exact=False,
                made=self._is_made(preset),
                engine=self._settings.engine,
            )
            for preset, name in zip(chosen, names, strict=True)
        )

    def _is_made(self, preset: Preset) -> bool:
        tool = tool_name(self._toolchain)
        place = made_before(self._manifest, self._kept, preset, self._settings, self._known, tool)
        return place is not None

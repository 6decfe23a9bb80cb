"""Where a job is decided: it looks, refuses, and says what will be done.

Nothing is written but a hollow model in the cache, of which llama-quantize is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ggq import hub
from ggq.conversion import BITS_PER_WEIGHT, default_name, pipes
from ggq.conversion.settings import Verify
from ggq.errors import UsageProblem
from ggq.gguf import file as gguf_file
from ggq.gguf import names as gguf_names
from ggq.gguf.file import GgufFile
from ggq.llamacpp.tools import QuantizeOptions
from ggq.operations import auto_preset
from ggq.operations.auto_preset import AutoChoice
from ggq.operations.base import GivenBase, own_base
from ggq.operations.base_estimate import BaseEstimate, estimate_base, with_base, with_header
from ggq.operations.convert_step import CONVERT, Work
from ggq.operations.fetch_checkpoint import model_name
from ggq.operations.job_plan import JobPlan, Options, PlannedBase, PlannedFile
from ggq.operations.preset_files import made_before, recorded_size, with_made_matrix
from ggq.operations.request import Request, Settings, refuse_without_imatrix
from ggq.operations.workspace import kept_folder, tool_name
from ggq.presets.catalogue import Preset
from ggq.quantization import calibration, choose_engine, expected_imatrix
from ggq.quantization.engine import EngineName
from ggq.quantization.imatrix import default_name as matrix_name
from ggq.quantization.imatrix_file import Importance
from ggq.quantization.recipe import SizeEstimate, refuse_quantized
from ggq.records.manifest import Manifest
from ggq.session import Session
from ggq.system import files, scratch

OTHER_FOLDER = "Choose another folder with --outdir."
KEEP_BASE = "Leave that preset out; --keep-base keeps the 16-bit GGUF itself."


def prepare(request: Request, session: Session, *, download: bool = True) -> JobPlan:
    """Decide what a job does. ``download`` False: a preset that can only be recommended after a download is
    refused (NeedsWeights).

    Of a model that can only be planned after its download, sizes are the parameter count times the preset's
    nominal bits. A disk that is too small is told in the plan.
    Raises every GgqError that can be known before the work.
    """
    if request.model.kind == "gguf":
        return _of_gguf(request, session, download=download)
    return _of_checkpoint(request, session, download=download)


@dataclass(frozen=True)
class _Place:
    """Where the files of a job go, and which ones."""

    request: Request
    session: Session
    name: str
    outdir: Path
    manifest: Manifest
    presets: tuple[Preset, ...]
    choice: AutoChoice | None

    @property
    def settings(self) -> Settings:
        return self.request.settings

    @property
    def kept(self) -> Path:
        return kept_folder(self.name, self.outdir)

    def file_names(self, shard_count: int = 1) -> tuple[str, ...]:
        """Of the presets' files; with --keep-split each one's first of ``shard_count``."""
        names = tuple(gguf_names.output_name(self.name, preset.name) for preset in self.presets)
        if not self.settings.options.keep_split:
            return names
        return tuple(gguf_names.shard_name(Path(it).stem, 1, shard_count) for it in names)

    def claim(self, names: Sequence[str], base: Path, instead: str) -> None:
        """Raises OutputProblem where the files would overwrite something of the user's, UsageProblem where
        one would take the place of the base (``instead``: what to do then)."""
        if base.resolve() in [(self.outdir / it).resolve() for it in names]:
            raise UsageProblem(
                f"{base} would be overwritten by itself.",
                "The preset's file would have the name of the 16-bit GGUF.",
                instead,
            )
        matrix = (matrix_name(self.name),) if self.settings.makes_imatrix else ()
        self.manifest.claim((*names, *matrix), force=self.settings.force)

    def options(self, known: Sequence[str]) -> Options:
        """How files are quantized; ``known``: the names that records may call the base."""
        settings = self.settings
        if not settings.makes_imatrix:
            return Options(settings.quantize_options)
        asked = Options(settings.quantize_options, calibration.read(settings.imatrix_text))
        return with_made_matrix(self.manifest, self.name, asked, settings, self.session, known)


def _place(request: Request, name: str, session: Session, *, download: bool) -> _Place:
    outdir = auto_preset.place(request.model, name, request.outdir)
    files.refuse_unwritable(outdir)
    manifest = Manifest.of(name, outdir)
    chosen, presets = None, request.presets
    if presets is None:
        settings = request.settings
        chosen = auto_preset.choose(
            request.model, manifest, session, force=settings.force, download=download and not settings.stream
        )
        presets = (chosen.preset,)
        if request.model.kind != "gguf" and settings.imatrix is None:
            refuse_without_imatrix(presets)
    return _Place(request, session, name, outdir, manifest, presets, chosen)


def _of_gguf(request: Request, session: Session, *, download: bool) -> JobPlan:
    assert request.model.path is not None
    whole = gguf_file.read_all(request.model.path)
    refuse_quantized(whole)
    given = GivenBase(whole.path, session.listener)
    name = gguf_names.parse_name(whole.path.name).model
    place = _place(request, name, session, download=download)
    names = place.file_names(len(whole.paths))
    own_base(place.manifest, given, force=place.settings.force)
    place.claim(names, whole.path, OTHER_FOLDER)
    # Without records there is nothing to compare the base with.
    known = given.known() if place.manifest.steps else ()
    options = place.options(known)
    planned = _Files(place, options, known).planned(names, whole)
    return _plan(place, options, planned, given)


def _of_checkpoint(request: Request, session: Session, *, download: bool) -> JobPlan:
    ref, settings = request.model, request.settings
    # A folder tells the type of its GGUF; of what is on the Hub the hollow one does.
    found = estimate_base(ref, settings.outtype.value, session, hollow=ref.path is None)
    place = _place(request, model_name(ref), session, download=download)
    place.manifest.own(found.identity, force=settings.force)
    names = place.file_names()
    base = place.outdir / default_name(place.name, found.outtype)
    place.claim(names, base, KEEP_BASE)
    is_streamed = settings.stream and found.download_bytes > 0
    record = _record(found, place, is_streamed=is_streamed)
    options = place.options(record.names)
    looked = _Files(place, options, record.names)
    if found.base is None and (settings.keep_base or not looked.all_made):
        if record.has_file:
            found = with_base(found, gguf_file.read_all(base))
        else:
            found = with_header(found, ref, settings.outtype.value, session)
    planned = looked.planned(names, found.base) if found.base else looked.estimated(names, found)
    if is_streamed:
        _refuse_in_stream(planned)
    free_bytes = files.free_bytes(place.outdir)
    # What the download leaves of one disk is what the run will find.
    shares_disk = not is_streamed and files.same_disk(hub.cache_dir(), place.outdir)
    left_bytes = free_bytes - (found.download_bytes if shares_disk else 0)
    to_make = [file for file in planned if not file.made]
    needs_file = settings.keep_base or options.text is not None or any(map(_needs_file, to_make))
    without_file = is_streamed or (
        not (needs_file or record.has_file) and _is_made_without_file(settings, found, to_make, left_bytes)
    )
    makes_base = bool(to_make or settings.keep_base) and not (record.has_file or without_file)
    if makes_base:
        place.manifest.claim((base.name,), force=settings.force)
    planned_base = PlannedBase(base.name, found.base_bytes, kept=settings.keep_base) if makes_base else None
    return _plan(
        place, options, planned, found, base=planned_base, is_streamed=is_streamed, shares_disk=shares_disk,
        without_file=without_file,
    )  # fmt: skip


def _plan(
    place: _Place,
    options: Options,
    planned: tuple[PlannedFile, ...],
    source: GivenBase | BaseEstimate,
    *,
    base: PlannedBase | None = None,
    is_streamed: bool = False,
    shares_disk: bool = False,
    without_file: bool = False,
) -> JobPlan:
    return JobPlan(
        model=place.name,
        outdir=place.outdir,
        download_bytes=source.download_bytes if isinstance(source, BaseEstimate) else 0,
        base=base,
        files=planned,
        free_bytes=files.free_bytes(place.outdir),
        kept_bytes=kept_bytes(place.kept),
        is_streamed=is_streamed,
        shares_disk=shares_disk,
        makes_imatrix=options.text is not None,
        request=place.request,
        presets=place.presets,
        choice=place.choice,
        options=options,
        source=source,
        without_file=without_file,
        seen=place.manifest.state,
    )


def kept_bytes(folder: Path) -> int:
    """Disk that unfinished work takes."""
    return sum(files.allocated_bytes(it) or 0 for it in folder.iterdir()) if folder.is_dir() else 0


def _needs_file(file: PlannedFile) -> bool:
    name = file.engine
    return name not in (None, EngineName.AUTO) and choose_engine.engine(EngineName(name)).needs_file


def _is_made_without_file(
    settings: Settings, found: BaseEstimate, to_make: Sequence[PlannedFile], free_bytes: int
) -> bool:
    """Whether a checkpoint's presets are made with no 16-bit GGUF on the disk: where nobody needs it, or
    there is no room for it beside its presets."""
    if not to_make or settings.engine == EngineName.LLAMA_QUANTIZE:
        return False
    if settings.verify == Verify.FULL:  # asked for in so many words: rather no files than unproven ones
        return False
    needless = settings.verify == Verify.OFF
    files_bytes = sum(it.size.file_bytes for it in to_make)
    return pipes.are_there() and (needless or free_bytes < found.base_bytes + files_bytes)


def not_from_a_stream(preset: str, why: str) -> UsageProblem:
    """The words for a preset that llama-quantize must make, where there is no 16-bit GGUF on the disk."""
    return UsageProblem(
        f"{preset} of this model cannot be made from a stream.",
        f"llama-quantize must make it, from a 16-bit GGUF on the disk: {why}",
        "Leave that preset out, or --stream: the checkpoint is downloaded then.",
    )


def _refuse_in_stream(planned: Sequence[PlannedFile]) -> None:
    for file in planned:
        if not file.made and _needs_file(file):
            raise not_from_a_stream(file.preset, file.why)


@dataclass(frozen=True)
class _Record:
    """What is known of a conversion: the ``names`` of its base in records, and whether its file is there."""

    names: tuple[str, ...] = ()
    has_file: bool = False


def _record(found: BaseEstimate, place: _Place, *, is_streamed: bool) -> _Record:
    """That of an earlier conversion of the same, as the run would find it."""
    manifest, digests = place.manifest, None
    if CONVERT in manifest.steps:
        digests = found.checkpoint.digests if found.checkpoint else found.digests
    if digests is None:
        return _Record()
    tool = tool_name(place.session.toolchain)
    work = Work(digests, found.outtype, place.settings.verify.value, tool, unproven=is_streamed)
    record = work.record(manifest)
    has_file = record is not None and bool(record.outputs) and manifest.outputs_whole(CONVERT)
    return _Record(work.known(manifest), has_file)


class _Files:
    """Presets' files before they are made, and which of them an earlier run made by the same work.

    ``known``: names that records may call the base."""

    def __init__(self, place: _Place, options: Options, known: Sequence[str]) -> None:
        self._place = place
        self._options = options
        tool = tool_name(place.session.toolchain)
        self._made = {
            preset.name
            for preset in place.presets
            if made_before(place.manifest, place.kept, preset, options.quantize, known, tool) is not None
        }

    @property
    def all_made(self) -> bool:
        return len(self._made) == len(self._place.presets)

    def planned(self, names: Sequence[str], base: GgufFile) -> tuple[PlannedFile, ...]:
        """What llama-quantize says of each preset; with an imatrix that is still to be made, as far
        as it can be known."""
        with ExitStack() as stack:
            quantize, matrix = self._options.quantize, None
            if self._options.text is not None:
                folder = stack.enter_context(scratch.folder("matrix"))
                target = self._place.outdir / matrix_name(self._place.name)
                matrix = expected_imatrix.matrix(base, folder, target, self._options.text.path.name)
                quantize = self._place.settings.with_imatrix(matrix.file.path)
            asked = partial(self._asked, base=base, options=quantize, matrix=matrix)
            return self._each(names, asked)

    def _asked(
        self,
        preset: Preset,
        name: str,
        *,
        base: GgufFile,
        options: QuantizeOptions,
        matrix: Importance | None,
    ) -> PlannedFile:
        engine = self._place.settings.engine
        decided = choose_engine.decide(self._place.session.toolchain, base, preset, options, engine, matrix)
        its = decided.choice
        return PlannedFile(
            preset.name, name, decided.recipe.size, exact=True, made=False,
            engine=its.engine.name if its else None, why=its.why if its else "",
            uncovered=decided.recipe.uncovered,
        )  # fmt: skip

    def estimated(self, names: Sequence[str], found: BaseEstimate) -> tuple[PlannedFile, ...]:
        """What the presets' nominal bits say."""
        bits, asked = BITS_PER_WEIGHT[found.outtype], self._place.settings.engine
        engine = None if asked == EngineName.AUTO else asked

        def nominal(preset: Preset, name: str) -> PlannedFile:
            size = nominal_size(preset, found.parameter_count, bits)
            return PlannedFile(preset.name, name, size, exact=False, made=False, engine=engine)

        return self._each(names, nominal)

    def _each(
        self, names: Sequence[str], look: Callable[[Preset, str], PlannedFile]
    ) -> tuple[PlannedFile, ...]:
        """What the records say of each file, or else what ``look`` says."""
        pairs = zip(self._place.presets, names, strict=True)
        return tuple(self._of_record(*pair) or look(*pair) for pair in pairs)

    def _of_record(self, preset: Preset, name: str) -> PlannedFile | None:
        if preset.name not in self._made:
            return None
        size = recorded_size(self._place.manifest, preset)
        return PlannedFile(preset.name, name, size, exact=True, made=True, engine=None)


def nominal_size(preset: Preset, parameter_count: int, base_bits_per_weight: float) -> SizeEstimate:
    """A file's size as estimated before there is a header to ask about."""
    bits = preset.bits_per_weight or base_bits_per_weight
    return SizeEstimate(int(parameter_count * bits / 8), bits)

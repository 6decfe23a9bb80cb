"""The quantize steps of the main job: which files are ready, and how the others are made."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ggq.errors import Damaged, GgqError, GgufProblem, OutputProblem, SourceChanged, UsageProblem
from ggq.gguf import file as gguf_file
from ggq.gguf import names as gguf_names
from ggq.gguf.file import GgufFile
from ggq.llamacpp.toolchain import Toolchain
from ggq.operations.convert_step import Base, ConvertedBase
from ggq.operations.request import Settings, nominal_bytes, without_base
from ggq.operations.workspace import Job
from ggq.presets.catalogue import Preset
from ggq.progress import Listener, Notice, silent
from ggq.quantization import engine as choice
from ggq.quantization import imatrix_coverage
from ggq.quantization.engine import Choice, choose
from ggq.quantization.imatrix import ImatrixSettings, Matrix
from ggq.quantization.imatrix import default_name as matrix_name
from ggq.quantization.llama_quantize import Quantized, quantize_one
from ggq.quantization.one_pass import Swept, sweep
from ggq.quantization.recipe import Recipe, SizeEstimate, ask, refuse_without_imatrix
from ggq.quantization.tensor_source import BaseFile, Source
from ggq.records.manifest import Manifest, OutputFile, StepRecord
from ggq.system import files, hardware
from ggq.system.unchanged import Unchanged

_NO_ROOM = "the disk has no room for a base GGUF beside its presets"


@dataclass(frozen=True)
class QuantizedFile:
    """What one preset made. ``paths`` are several for a split model; ``reused``: an earlier run made it,
    and it is still whole. ``swept_with``: the presets of the one pass that took these ``seconds``, this one
    too; empty: llama-quantize made it alone."""

    preset: str
    paths: tuple[Path, ...]
    size: SizeEstimate
    seconds: float
    swept_with: tuple[str, ...]
    reused: bool


def made_before(
    manifest: Manifest, kept: Path, preset: Preset, settings: Settings, base: Sequence[str], tool: str
) -> dict[str, Path] | None:
    """Where the files of a preset lie that an earlier run made by the same work, each whole: beside the
    manifest, or still in ``kept``. None: it has to be made. ``base``: the names that records may call it."""
    step, options = _step_of(preset), _options_of(preset, settings)
    if not any(manifest.current(step, {"base": name}, options, tool) for name in base):
        return None
    found = {}
    for output in manifest.steps[step].outputs:
        place = next((it for it in (kept, manifest.folder) if output.is_whole_in(it)), None)
        if place is None:
            return None
        found[output.name] = place
    return found


def not_from_a_stream(preset: Preset, its: Choice) -> UsageProblem:
    """The words for a preset that llama-quantize must make, where there is no base on the disk."""
    return UsageProblem(
        f"{preset.name} of this model cannot be made from a stream.",
        f"llama-quantize must make it, from a base on the disk: {its.why}",
        "Leave that preset out, or --stream: the checkpoint is downloaded then.",
    )


class Making:
    """The quantize steps of one job."""

    def __init__(self, job: Job, settings: Settings) -> None:
        self._job = job
        self._settings = settings
        self._threads = settings.threads or hardware.usable_cores()
        matrix = settings.options.imatrix
        # What the files are made from: it must stay as it is until they are.
        self._reading = [] if matrix is None else [Unchanged([matrix])]

    def quantize_all(self, base: Base, chosen: Sequence[Preset]) -> tuple[QuantizedFile, ...]:
        """The file of every preset: as it was where nothing changed, else made.

        All recipes are asked before the first file is made, so that a preset that cannot be made, or a disk
        that cannot hold them all, is known at once.
        """
        if self._settings.calibration is not None:
            self._settings = self._with_matrix(base)
        known = base.known()
        ready = {preset.name for preset in chosen if self._is_ready(preset, known)}
        missing = [preset for preset in chosen if preset.name not in ready]
        self._tell_replaced(missing)
        if missing:
            with self._dropping(SourceChanged), ExitStack() as stack:
                for it in self._reading:
                    stack.enter_context(it.explaining())
                self._make_of(base, missing)
        shutil.rmtree(self._job.kept, ignore_errors=True)
        return tuple(self._file_of(preset, reused=preset.name in ready) for preset in chosen)

    def _make_of(self, base: Base, missing: Sequence[Preset]) -> None:
        with base.unchanged().explaining():
            if self._make_streamed(missing, base):
                return
        path, digest = base.ensure()
        self._reading.append(base.unchanged())
        with base.unchanged().explaining():
            self._make(missing, path, digest)

    def _tell_replaced(self, missing: Sequence[Preset]) -> None:
        """Say which files of ours give way to others of their names."""
        steps, outdir = self._job.manifest.steps, self._job.outdir
        for preset in missing:
            record = steps.get(_step_of(preset))
            if record is not None and all((outdir / output.name).exists() for output in record.outputs):
                why = "from another base, with other options or by other tools"
                self._job.listener(Notice(f"{preset.name} is made again: the file here was made {why}."))

    def _with_matrix(self, base: Base) -> Settings:
        """The settings with the importance matrix of the base: as it was where nothing changed, else made."""
        job = self._job
        ready = with_made_matrix(job.manifest, job.name, self._settings, job.toolchain, base.known())
        if ready.calibration is None:
            return ready
        matrix = _matrix_of(job.manifest, job.name, self._settings, job.toolchain, job.listener)
        path, digest = base.ensure()
        reading = base.unchanged()
        with reading.explaining():
            whole = gguf_file.read_all(path)
            matrix.make(whole, digest, reading, job.staging, job.record, force=job.force)
        self._reading.append(Unchanged([matrix.path]))
        return _with(self._settings, matrix.path)

    def _is_ready(self, preset: Preset, base: Sequence[str]) -> bool:
        """Whether an earlier run made the file. What it wrote down but could not publish is published."""
        job = self._job
        found = made_before(job.manifest, job.kept, preset, self._settings, base, job.tool)
        for name, place in (found or {}).items():
            if place != job.outdir:
                files.publish(place / name, job.outdir / name)
        return found is not None

    def _make_streamed(self, wanted: Sequence[Preset], base: Base) -> bool:
        """Make them from the converter's stream, without a base on the disk. False: nothing was made, since
        the base can be a file, or has to be one."""
        job, settings = self._job, self._settings
        if not isinstance(base, ConvertedBase) or base.is_there():
            return False
        estimated = sum(
            nominal_bytes(preset, base.parameter_count, base.bits_per_weight) for preset in wanted
        )
        free = files.free_bytes(job.outdir) + self._kept_bytes()
        if not base.is_remote and not without_base(settings, base.needed_bytes, estimated, free):
            return False
        try:
            files.require_holes(job.staging)
        except OutputProblem:
            if base.is_remote:
                raise
            return False
        with self._dropping(Damaged), base.streamed() as source:
            recipes = self._ask(wanted, source.base)
            for recipe in recipes:
                its = choose(settings.engine, job.toolchain, source.base, recipe)
                if its.engine == choice.TOOL and base.is_remote:
                    raise not_from_a_stream(recipe.preset, its)
                if its.engine == choice.TOOL:
                    return False
            if settings.verify.lower() != "off":
                why = "it is never on the disk" if base.is_remote else _NO_ROOM
                job.listener(Notice(f"The conversion is not checked: {why}.", "warning"))
            self._require_space(recipes)
            made = self._sweep(recipes, source)
        base.unchanged().require()
        base.record_streamed(source)
        self._finish_swept(recipes, made, base.name())
        return True

    def _make(self, wanted: Sequence[Preset], path: Path, base_sha256: str) -> None:
        job, base = self._job, gguf_file.read_all(path)
        recipes = self._ask(wanted, base)
        engine = self._settings.engine
        chosen = [(recipe, choose(engine, job.toolchain, base, recipe)) for recipe in recipes]
        self._require_space(recipes)
        for why in dict.fromkeys(its.why for _, its in chosen if its.why):
            names = ", ".join(recipe.preset.name for recipe, its in chosen if its.why == why)
            job.listener(Notice(f"llama-quantize makes {names}: {why}"))
        swept = [recipe for recipe, its in chosen if its.engine == choice.SWEEP]
        if swept:
            self._finish_swept(swept, self._sweep(swept, BaseFile(base, base_sha256)), base_sha256)
        else:
            shutil.rmtree(job.kept, ignore_errors=True)
        for recipe, its in chosen:
            if its.engine == choice.TOOL:
                self._run_tool(recipe, base, base_sha256)

    def _ask(self, wanted: Sequence[Preset], base: GgufFile) -> list[Recipe]:
        recipes = [ask(self._job.toolchain, base, preset, self._settings.options) for preset in wanted]
        for recipe in recipes:
            refuse_without_imatrix(recipe)
            if remark := imatrix_coverage.words(recipe.uncovered, recipe.preset.name):
                self._job.listener(Notice(remark, "warning"))
        return recipes

    def _require_space(self, recipes: Sequence[Recipe]) -> None:
        """Raises DiskFull. What an earlier run's sweep wrote is taken up, or removed."""
        needed = sum(recipe.size.file_bytes for recipe in recipes) - self._kept_bytes()
        names = ", ".join(recipe.preset.name for recipe in recipes)
        files.require_space(self._job.outdir, max(0, needed), f"the files of {names}")

    def _kept_bytes(self) -> int:
        """Disk that an unfinished sweep takes."""
        kept = self._job.kept
        return sum(files.allocated_bytes(file) or 0 for file in kept.iterdir()) if kept.is_dir() else 0

    def _sweep(self, recipes: Sequence[Recipe], source: Source) -> Swept:
        """All of them in one pass, in a folder that stays when this run is broken off."""
        job, settings = self._job, self._settings
        with files.explain_os_error(job.kept):
            job.kept.mkdir(exist_ok=True)
        targets = [job.kept / gguf_names.output_name(job.name, recipe.preset.name) for recipe in recipes]
        with self._dropping(GgufProblem):
            return sweep(
                job.toolchain, source, recipes, targets, threads=self._threads,
                max_memory_bytes=settings.max_memory_bytes, listener=job.listener,
            )  # fmt: skip

    @contextmanager
    def _dropping(self, kind: type[GgqError]) -> Iterator[None]:
        """Do not keep what was made until such an error: going on would end the same way, or no better."""
        try:
            yield
        except kind:
            shutil.rmtree(self._job.kept, ignore_errors=True)
            raise

    def _finish_swept(self, recipes: Sequence[Recipe], made: Swept, base_name: str) -> None:
        findings = {
            "engine": choice.SWEEP,
            "swept_with": [recipe.preset.name for recipe in recipes],
            "computed_pairs": made.computed_pairs,
            "kept_pairs": made.kept_pairs,
        }
        self._finish(recipes, made.files, base_name, findings)

    def _run_tool(self, recipe: Recipe, base: GgufFile, base_sha256: str) -> None:
        job = self._job
        staged = job.staging / gguf_names.output_name(job.name, recipe.preset.name)
        made = quantize_one(
            job.toolchain, base.path, recipe, staged, threads=self._threads, listener=job.listener
        )
        self._finish([recipe], [made], base_sha256, {"engine": choice.TOOL})

    def _finish(
        self,
        recipes: Sequence[Recipe],
        made: Sequence[Quantized],
        base_name: str,
        findings: Mapping[str, Any],
    ) -> None:
        """Write finished files down, all at once, and give them their names. Raises SourceChanged where what
        they were made from is not what it was."""
        for it in self._reading:
            it.require()
        job = self._job
        paths = [path for each in made for path in each.paths]
        job.manifest.claim(tuple(path.name for path in paths), force=job.force)
        with ThreadPoolExecutor(self._threads) as pool:  # digests, a second per 1.5 GB
            outputs = dict(zip(paths, pool.map(OutputFile.of, paths), strict=True))
        records = {
            _step_of(recipe.preset): StepRecord(
                inputs={"base": base_name},
                options=_options_of(recipe.preset, self._settings),
                tool=job.tool,
                outputs=tuple(outputs[path] for path in each.paths),
                seconds=round(each.seconds, 2),
                peak_memory_bytes=each.peak_memory_bytes,
                findings={
                    "bits_per_weight": round(recipe.size.bits_per_weight, 4),
                    "fallback_count": recipe.size.fallback_count,
                    "quantized_count": recipe.size.quantized_count,
                    "fallen_share": round(recipe.size.fallen_share, 4),
                    "uncovered": [it.name for it in recipe.uncovered],
                    **findings,
                },
            )
            for recipe, each in zip(recipes, made, strict=True)
        }
        job.record_all(records)
        for path in paths:
            files.publish(path, job.outdir / path.name)

    def _file_of(self, preset: Preset, *, reused: bool) -> QuantizedFile:
        record = self._job.manifest.steps[_step_of(preset)]
        return QuantizedFile(
            preset=preset.name,
            paths=tuple(self._job.outdir / output.name for output in record.outputs),
            size=SizeEstimate(
                file_bytes=sum(output.file_bytes for output in record.outputs),
                bits_per_weight=record.findings["bits_per_weight"],
                fallback_count=record.findings["fallback_count"],
                quantized_count=record.findings["quantized_count"],
                fallen_share=record.findings.get("fallen_share", 0.0),
            ),
            seconds=record.seconds,
            swept_with=tuple(record.findings.get("swept_with", ())),
            reused=reused,
        )


def with_made_matrix(
    manifest: Manifest, name: str, settings: Settings, toolchain: Toolchain, base: Sequence[str]
) -> Settings:
    """The settings with the importance matrix that an earlier run made of the base, if it did. ``base``: the
    names that records may call it."""
    if settings.calibration is None:
        return settings
    matrix = _matrix_of(manifest, name, settings, toolchain)
    return _with(settings, matrix.path) if any(matrix.known(it) for it in base) else settings


def _matrix_of(
    manifest: Manifest, name: str, settings: Settings, toolchain: Toolchain, listener: Listener = silent
) -> Matrix:
    assert settings.calibration is not None, "it was asked for"
    how = ImatrixSettings(threads=settings.threads, parse_special=settings.parse_special)
    return Matrix(
        manifest, matrix_name(name), settings.calibration, how, toolchain, listener, any_settings=True
    )


def _with(settings: Settings, imatrix: Path) -> Settings:
    options = replace(settings.options, imatrix=imatrix)
    return replace(settings, options=options, calibration=None)


def _step_of(preset: Preset) -> str:
    return f"quantize {preset.name}"


def _options_of(preset: Preset, settings: Settings) -> dict[str, Any]:
    options = settings.options
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

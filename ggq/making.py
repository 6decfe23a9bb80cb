"""The quantize steps of the main job: which files are ready, and how the others are made."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ggq import files, gguf_file, gguf_names, hardware
from ggq.bases import Base, ConvertedBase
from ggq.bench.corpus import Text
from ggq.convert import pipe
from ggq.errors import Damaged, GgqError, GgufProblem, OutputProblem, UsageProblem
from ggq.gguf_file import GgufFile
from ggq.job import Job
from ggq.llamacpp.tools import QuantizeOptions
from ggq.presets import Preset
from ggq.progress import Notice
from ggq.quantize import choice
from ggq.quantize.choice import choose
from ggq.quantize.imatrix import ImatrixSettings, Matrix
from ggq.quantize.imatrix import default_name as matrix_name
from ggq.quantize.recipe import Recipe, ask, check, refuse_without_imatrix, without_imatrix
from ggq.quantize.source import BaseFile, Source
from ggq.quantize.sweep import MAX_MEMORY_BYTES, Swept, sweep
from ggq.quantize.tool import Quantized, quantize_one
from ggq.records import Manifest, OutputFile, StepRecord
from ggq.reference import ModelRef

_NO_ROOM = "the disk has no room for a base GGUF beside its presets"


@dataclass(frozen=True)
class QuantizedFile:
    """What one preset made. ``paths`` are several for a split model; ``bits_per_weight`` counts tensor data;
    ``fallback_count`` of ``quantized_count`` tensors got another type than the preset wants; ``reused``: an
    earlier run made it, and it is still whole. ``swept_with``: the presets of the one pass that took these
    ``seconds``, this one too; empty: llama-quantize made it alone."""

    preset: str
    paths: tuple[Path, ...]
    file_bytes: int
    bits_per_weight: float
    fallback_count: int
    quantized_count: int
    seconds: float
    swept_with: tuple[str, ...]
    reused: bool

    @property
    def mostly_fell_back(self) -> bool:
        return 2 * self.fallback_count > self.quantized_count


@dataclass(frozen=True)
class Settings:
    """How to make the files. ``options`` go to llama-quantize; ``calibration``: a text, from which to make an
    importance matrix of the base in place of one in the options; ``engine``: auto, sweep or llama-quantize;
    ``max_memory_bytes``: of the sweep (see ``quantize.engine``); ``verify``: off, sampled or full;
    ``stream``: read a checkpoint of the Hub while it is quantized, and keep nothing of its weights."""

    outtype: str = "auto"
    options: QuantizeOptions = field(default_factory=QuantizeOptions)
    calibration: Text | None = None
    engine: str = choice.AUTO
    max_memory_bytes: int = MAX_MEMORY_BYTES
    threads: int | None = None
    verify: str = "sampled"
    keep_base: bool = False
    force: bool = False
    stream: bool = False


def refuse_beforehand(settings: Settings, ref: ModelRef, chosen: Sequence[Preset]) -> None:
    """What can be said before anything is read. Raises UsageProblem."""
    check(settings.options)
    choice.check(settings.engine)
    if settings.stream:
        _refuse_to_stream(settings, ref)
    if ref.kind == "gguf":
        return
    if settings.options.keep_split:
        raise UsageProblem(
            "There is no split base to keep the shards of.",
            "--keep-split is for a GGUF in shards; a checkpoint becomes one base file.",
            "Leave --keep-split out.",
        )
    if settings.options.imatrix is None and settings.calibration is None:
        for preset in chosen:
            if preset.needs_imatrix:
                raise without_imatrix(preset)


def _refuse_to_stream(settings: Settings, ref: ModelRef) -> None:
    if ref.path is not None:
        raise UsageProblem(
            f"{ref} lies on this disk already.", "Only what is on the Hub is streamed.", "Leave --stream out."
        )
    obstacles = [
        (settings.keep_base, "--keep-base asks for it."),
        (settings.calibration is not None, "An importance matrix is to be made of it."),
        (settings.engine == choice.TOOL, "llama-quantize reads it from the disk."),
        (not pipe.are_there(), "It is handed over by a named pipe, and this system has none."),
    ]
    for holds, why in obstacles:
        if holds:
            raise UsageProblem(
                "A stream leaves no base GGUF.", why, "Leave --stream out: the checkpoint is downloaded then."
            )


def claim(
    manifest: Manifest,
    name: str,
    settings: Settings,
    chosen: Sequence[Preset],
    base: Sequence[Path],
    *,
    converted: bool,
) -> tuple[str, ...]:
    """The names of the presets' files (of split ones the first), of the model ``name``.

    ``base``: its shards; ``converted``: it is of our making. Raises UsageProblem and OutputProblem, before
    any work, where the files would overwrite the base or something of the user's.
    """
    names = tuple(gguf_names.output_name(name, preset.name) for preset in chosen)
    if settings.options.keep_split:
        names = tuple(gguf_names.shard_name(Path(it).stem, 1, len(base)) for it in names)
    if base[0].resolve() in [(manifest.folder / it).resolve() for it in names]:
        raise UsageProblem(
            f"{base[0]} would be overwritten by itself.",
            "The preset's file would have the name of the base.",
            "Leave that preset out; --keep-base keeps the base itself."
            if converted
            else "Choose another folder with --outdir.",
        )
    matrix = () if settings.calibration is None else (matrix_name(name),)
    manifest.claim(names + matrix, force=settings.force)
    return names


def without_base(settings: Settings, base_bytes: int, files_bytes: int, free_bytes: int) -> bool:
    """Whether a checkpoint's presets are made with no base GGUF on the disk: where nobody needs it, or there
    is no room for it beside its presets (``files_bytes``: as reckoned beforehand)."""
    if settings.engine == choice.TOOL or settings.keep_base or settings.calibration is not None:
        return False
    needless = settings.verify.lower() == "off"
    return pipe.are_there() and (needless or free_bytes < base_bytes + files_bytes)


def nominal_bytes(preset: Preset, parameter_count: int, base_bits_per_weight: float) -> int:
    """A file's size as reckoned before there is a base to ask about."""
    return int(parameter_count * (preset.bits_per_weight or base_bits_per_weight) / 8)


class Making:
    """The quantize steps of one job."""

    def __init__(self, job: Job, settings: Settings) -> None:
        self._job = job
        self._settings = settings
        self._threads = settings.threads or hardware.usable_cores()

    def quantize_all(self, base: Base, chosen: Sequence[Preset]) -> tuple[QuantizedFile, ...]:
        """The file of every preset: as it was where nothing changed, else made.

        All recipes are asked before the first file is made, so that a preset that cannot be made, or a disk
        that cannot hold them all, is known at once.
        """
        if self._settings.calibration is not None:
            imatrix = self._matrix(base, self._settings.calibration)
            options = replace(self._settings.options, imatrix=imatrix)
            self._settings = replace(self._settings, options=options, calibration=None)
        known = base.known()
        ready = {preset.name for preset in chosen if self._is_ready(preset, known)}
        missing = [preset for preset in chosen if preset.name not in ready]
        self._tell_replaced(missing)
        if missing and not self._make_streamed(missing, base):
            self._make(missing, *base.ensure())
        shutil.rmtree(self._job.kept, ignore_errors=True)
        return tuple(self._file_of(preset, reused=preset.name in ready) for preset in chosen)

    def _tell_replaced(self, missing: Sequence[Preset]) -> None:
        """Say which files of ours give way to others of their names."""
        steps, outdir = self._job.manifest.steps, self._job.outdir
        for preset in missing:
            record = steps.get(_step_of(preset))
            if record is not None and all((outdir / output.name).exists() for output in record.outputs):
                why = "from another base, with other options or by other tools"
                self._job.listener(Notice(f"{preset.name} is made anew: the file here was made {why}."))

    def _matrix(self, base: Base, text: Text) -> Path:
        """The importance matrix of the base: as it was where nothing changed, else made."""
        job = self._job
        matrix = Matrix(
            job.manifest, matrix_name(job.name), text, ImatrixSettings(threads=self._settings.threads),
            job.toolchain, job.listener, any_settings=True,
        )  # fmt: skip
        if not any(matrix.known(name) for name in base.known()):
            path, digest = base.ensure()
            matrix.make(gguf_file.read_all(path), digest, job.staging, job.record, force=job.force)
        return matrix.path

    def _is_ready(self, preset: Preset, base: Sequence[str]) -> bool:
        """Whether an earlier run made the file. What it wrote down but could not publish is published."""
        job, step, options = self._job, _step_of(preset), self._options_of(preset)
        if not any(job.manifest.current(step, {"base": name}, options, job.tool) for name in base):
            return False
        for output in job.manifest.steps[step].outputs:
            if output.is_whole_in(job.kept):
                files.publish(job.kept / output.name, job.outdir / output.name)
        return job.manifest.outputs_whole(step)

    def _options_of(self, preset: Preset) -> dict[str, Any]:
        options = self._settings.options
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

    def _make_streamed(self, wanted: Sequence[Preset], base: Base) -> bool:
        """Make them from the converter's stream, without a base on the disk. False: nothing was made, since
        the base can be a file, or has to be one."""
        job, settings = self._job, self._settings
        if not isinstance(base, ConvertedBase) or base.is_there():
            return False
        reckoned = sum(nominal_bytes(preset, base.parameter_count, base.bits_per_weight) for preset in wanted)
        free = files.free_bytes(job.outdir) + self._kept_bytes()
        if not base.is_remote and not without_base(settings, base.needed_bytes, reckoned, free):
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
                    raise UsageProblem(
                        f"{recipe.preset.name} of this model cannot be made from a stream.",
                        f"llama-quantize must make it, from a base on the disk: {its.why}",
                        "Leave that preset out, or --stream: the checkpoint is downloaded then.",
                    )
                if its.engine == choice.TOOL:
                    return False
            if settings.verify.lower() != "off":
                why = "it is never on the disk" if base.is_remote else _NO_ROOM
                job.listener(Notice(f"The conversion is not checked: {why}.", "warning"))
            self._require_space(recipes)
            made = self._sweep(recipes, source)
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
        return recipes

    def _require_space(self, recipes: Sequence[Recipe]) -> None:
        """Raises DiskFull. What an earlier run's sweep wrote is taken up, or removed."""
        needed = sum(recipe.file_bytes for recipe in recipes) - self._kept_bytes()
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
        """Write finished files down, all at once, and give them their names."""
        job = self._job
        paths = [path for each in made for path in each.paths]
        job.manifest.claim(tuple(path.name for path in paths), force=job.force)
        with ThreadPoolExecutor(self._threads) as pool:  # digests, a second per 1.5 GB
            outputs = dict(zip(paths, pool.map(OutputFile.of, paths), strict=True))
        records = {
            _step_of(recipe.preset): StepRecord(
                inputs={"base": base_name},
                options=self._options_of(recipe.preset),
                tool=job.tool,
                outputs=tuple(outputs[path] for path in each.paths),
                seconds=round(each.seconds, 2),
                peak_memory_bytes=each.peak_memory_bytes,
                findings={
                    "bits_per_weight": round(recipe.bits_per_weight, 4),
                    "fallback_count": len(recipe.fallbacks),
                    "quantized_count": recipe.quantized_count,
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
            file_bytes=sum(output.file_bytes for output in record.outputs),
            bits_per_weight=record.findings["bits_per_weight"],
            fallback_count=record.findings["fallback_count"],
            quantized_count=record.findings["quantized_count"],
            seconds=record.seconds,
            swept_with=tuple(record.findings.get("swept_with", ())),
            reused=reused,
        )


def _step_of(preset: Preset) -> str:
    return f"quantize {preset.name}"

"""The files of a job's presets, made of a 16-bit GGUF or of the converter's stream."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from ggq.conversion.settings import Verify
from ggq.errors import Damaged, GgqError, GgufProblem, OutputProblem, SourceChanged
from ggq.gguf import file as gguf_file
from ggq.gguf.file import GgufFile
from ggq.operations.base import Base
from ggq.operations.convert_step import ConvertedBase
from ggq.operations.job_plan import JobPlan
from ggq.operations.prepare import kept_bytes, not_from_a_stream
from ggq.operations.preset_files import (
    QuantizedFile,
    made_before,
    matrix_of,
    quantized_file,
    recorded_options,
    step_of,
)
from ggq.operations.workspace import Job
from ggq.presets.catalogue import Preset
from ggq.progress import Notice
from ggq.quantization import choose_engine, imatrix_coverage
from ggq.quantization.choose_engine import Choice
from ggq.quantization.engine import Batch, Workplace
from ggq.quantization.recipe import Recipe, refuse_without_imatrix
from ggq.quantization.tensor_source import BaseFile, Source
from ggq.records.manifest import OutputFile, StepRecord
from ggq.system import files, hardware
from ggq.system.unchanged import Unchanged

_NO_ROOM = "the disk has no room for a 16-bit GGUF beside its presets"


class MakeFiles:
    """The quantize steps of one job."""

    def __init__(self, job: Job, plan: JobPlan) -> None:
        self._job = job
        self._plan = plan
        self._settings = plan.request.settings
        self._options = plan.options.quantize
        threads = self._settings.threads or hardware.usable_cores()
        self._place = Workplace(
            job.session, job.name, job.staging, job.kept, threads, self._settings.max_memory_bytes
        )
        matrix = self._options.imatrix
        # What the files are made from: it must stay as it is until they are.
        self._reading = [] if matrix is None else [Unchanged([matrix])]

    def make_all(self, base: Base) -> tuple[QuantizedFile, ...]:
        """The file of every preset: as it was where nothing changed, else made.

        All recipes are asked before the first file is made, so that a preset that cannot be made, or a disk
        that cannot hold them all, is known at once.
        """
        if self._plan.options.text is not None:
            self._make_matrix(base)
        ready = {
            preset.name
            for preset, file in zip(self._plan.presets, self._plan.files, strict=True)
            if file.made or self._was_made(preset, base)
        }
        for preset in self._plan.presets:
            if preset.name in ready:
                self._publish_kept(preset)
        missing = [preset for preset in self._plan.presets if preset.name not in ready]
        self._tell_replaced(missing)
        if missing:
            with self._dropping(SourceChanged), ExitStack() as stack:
                for it in self._reading:
                    stack.enter_context(it.explaining())
                self._make_missing(base, missing)
        shutil.rmtree(self._job.kept, ignore_errors=True)
        return tuple(
            quantized_file(self._job.manifest, preset, reused=preset.name in ready)
            for preset in self._plan.presets
        )

    def _make_missing(self, base: Base, missing: Sequence[Preset]) -> None:
        with base.unchanged().explaining():
            if self._plan.without_file and self._make_streamed(missing, base):
                return
        path, digest = base.ensure()
        self._reading.append(base.unchanged())
        with base.unchanged().explaining():
            self._make(missing, path, digest)

    def _tell_replaced(self, missing: Sequence[Preset]) -> None:
        """Say which files of ours give way to others of their names."""
        steps, outdir = self._job.manifest.steps, self._job.outdir
        for preset in missing:
            record = steps.get(step_of(preset))
            if record is not None and all((outdir / output.name).exists() for output in record.outputs):
                why = "from another 16-bit GGUF, with other options or by other tools"
                self._job.session.listener(
                    Notice(f"{preset.name} is made again: the file here was made {why}.")
                )

    def _make_matrix(self, base: Base) -> None:
        """Make the imatrix of the base, and quantize with it."""
        job = self._job
        matrix = matrix_of(job.manifest, job.name, self._plan.options, self._settings, job.session)
        path, digest = base.ensure()
        reading = base.unchanged()
        with reading.explaining():
            if matrix.known(digest) is None:
                whole = gguf_file.read_all(path)
                matrix.make(whole, digest, reading, job.staging, job.record, force=job.force)
        self._reading.append(Unchanged([matrix.path]))
        self._options = replace(self._options, imatrix=matrix.path)

    def _was_made(self, preset: Preset, base: Base) -> bool:
        """Whether an earlier run made the file, which could only be told once the base was known."""
        job = self._job
        return made_before(job.manifest, job.kept, preset, self._options, base.known(), job.tool) is not None

    def _publish_kept(self, preset: Preset) -> None:
        """Give a file its name that an earlier run wrote down but could not publish."""
        job = self._job
        for output in job.manifest.steps[step_of(preset)].outputs:
            if output.is_whole_in(job.kept):
                files.publish(job.kept / output.name, job.outdir / output.name)

    def _make_streamed(self, wanted: Sequence[Preset], base: Base) -> bool:
        """Make them from the converter's stream, without a base on the disk. False: nothing was made, since
        the base has to be a file."""
        job = self._job
        assert isinstance(base, ConvertedBase), "a GGUF of the user's is a file"
        try:
            files.require_holes(job.staging)
        except OutputProblem:
            if base.is_remote:
                raise
            return False
        with self._dropping(Damaged), base.streamed() as source:
            decided = self._decide(wanted, source.base)
            for recipe, its in decided:
                if its.engine.needs_file and base.is_remote:
                    raise not_from_a_stream(recipe.preset.name, its.why)
                if its.engine.needs_file:
                    return False
            if self._settings.verify != Verify.OFF:
                why = "it is never on the disk" if base.is_remote else _NO_ROOM
                job.session.listener(Notice(f"The conversion is not checked: {why}.", "warning"))
            self._require_space(decided)
            batches = list(self._run(decided, source))
        base.unchanged().require()
        base.record_streamed(source)
        for batch in batches:
            self._finish(batch, base.name())
        return True

    def _make(self, wanted: Sequence[Preset], path: Path, base_sha256: str) -> None:
        source = BaseFile(gguf_file.read_all(path), base_sha256)
        decided = self._decide(wanted, source.base)
        self._require_space(decided)
        for why in dict.fromkeys(its.why for _, its in decided if its.why):
            names = ", ".join(recipe.preset.name for recipe, its in decided if its.why == why)
            self._job.session.listener(Notice(f"llama-quantize makes {names}: {why}"))
        if all(its.engine.needs_file for _, its in decided):
            shutil.rmtree(self._job.kept, ignore_errors=True)
        for batch in self._run(decided, source):
            self._finish(batch, base_sha256)

    def _decide(self, wanted: Sequence[Preset], base: GgufFile) -> list[tuple[Recipe, Choice]]:
        found = []
        for preset in wanted:
            decided = choose_engine.decide(
                self._job.session.toolchain, base, preset, self._options, self._settings.engine
            )
            refuse_without_imatrix(decided.recipe)
            assert decided.choice is not None, "it has its imatrix"
            if remark := imatrix_coverage.words(decided.recipe.uncovered, preset.name):
                self._job.session.listener(Notice(remark, "warning"))
            found.append((decided.recipe, decided.choice))
        return found

    def _require_space(self, decided: Sequence[tuple[Recipe, Choice]]) -> None:
        """Raises DiskFull. What an earlier run wrote is taken up, or removed."""
        needed = sum(recipe.size.file_bytes for recipe, _ in decided) - kept_bytes(self._job.kept)
        names = ", ".join(recipe.preset.name for recipe, _ in decided)
        files.require_space(self._job.outdir, max(0, needed), f"the files of {names}")

    def _run(self, decided: Sequence[tuple[Recipe, Choice]], source: Source) -> Iterator[Batch]:
        """The engines at work, one after the other."""
        for engine in choose_engine.ENGINES:
            recipes = [recipe for recipe, its in decided if its.engine is engine]
            if recipes:
                with self._dropping(GgufProblem):
                    yield from engine.make(recipes, source, self._place)

    @contextmanager
    def _dropping(self, kind: type[GgqError]) -> Iterator[None]:
        """Do not keep what was made until such an error: going on would end the same way, or no better."""
        try:
            yield
        except kind:
            shutil.rmtree(self._job.kept, ignore_errors=True)
            raise

    def _finish(self, batch: Batch, base_name: str) -> None:
        """Write finished files down, all at once, and give them their names. Raises SourceChanged where what
        they were made from is not what it was."""
        for it in self._reading:
            it.require()
        job = self._job
        paths = [path for each in batch.files for path in each.paths]
        job.manifest.claim(tuple(path.name for path in paths), force=job.force)
        with ThreadPoolExecutor(self._place.threads) as pool:  # digests, a second per 1.5 GB
            outputs = dict(zip(paths, pool.map(OutputFile.of, paths), strict=True))
        records = {
            step_of(recipe.preset): StepRecord(
                inputs={"base": base_name},
                options=recorded_options(recipe.preset, self._options),
                tool=job.tool,
                outputs=tuple(outputs[path] for path in made.paths),
                seconds=round(made.seconds, 2),
                peak_memory_bytes=made.peak_memory_bytes,
                findings={
                    "bits_per_weight": round(recipe.size.bits_per_weight, 4),
                    "fallback_count": recipe.size.fallback_count,
                    "quantized_count": recipe.size.quantized_count,
                    "fallen_share": round(recipe.size.fallen_share, 4),
                    "uncovered": [it.name for it in recipe.uncovered],
                    **batch.findings,
                },
            )
            for recipe, made in zip(batch.recipes, batch.files, strict=True)
        }
        job.record_all(records)
        for path in paths:
            files.publish(path, job.outdir / path.name)

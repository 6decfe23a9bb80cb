"""``ggq bench``: quality, speed and memory of GGUF files, into the record beside them.

Every finished measurement is in the record at once. A journal keeps each batch of a run: where one was broken
off, or could not write its record, the same call goes on. One file's failure is noted, and the others are
measured all the same.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from ggq import corpora as corpus
from ggq.errors import GgqError, SourceChanged, UsageProblem
from ggq.gguf import file as gguf_file
from ggq.measurement import comparability, memory, model_file, quality, quality_record, speed
from ggq.measurement.memory import MemoryResult
from ggq.measurement.model_file import Subject
from ggq.measurement.quality import QualityResult
from ggq.measurement.record import FILE_NAME, Entry, Measurement, Record
from ggq.measurement.settings import BenchSettings
from ggq.measurement.speed import SpeedResult
from ggq.measurement.words import Kind
from ggq.operations import bench_journal
from ggq.operations.bench_targets import find_files
from ggq.operations.request import DEFAULT_PRESETS
from ggq.progress import Notice
from ggq.records.environment import environment, now
from ggq.records.journal import Journal
from ggq.records.manifest import checkpoints_of
from ggq.session import Session
from ggq.system import files, texts
from ggq.system.codec import Inlined
from ggq.system.unchanged import Unchanged

# What a base is: every quantization loses more than these do from each other.
_BASE_TYPES = ("F32", "BF16", "F16")


@dataclass(frozen=True)
class Failure:
    """A measurement that did not come to its end, or a file that cannot be read (``file``): of which file
    (None: of all together), and why."""

    kind: Kind | Literal["file"]
    file_name: str | None
    error: Annotated[GgqError, Inlined()]


@dataclass(frozen=True)
class BenchResult:
    """``entries``: the record's, of these files on this machine; ``quality``, ``speed``, ``memory``: what was
    measured now, the two last by file, in their order."""

    record: Path
    entries: tuple[Entry, ...]
    quality: QualityResult | None
    speed: tuple[tuple[Subject, SpeedResult], ...]
    memory: tuple[tuple[Subject, MemoryResult], ...]
    failures: tuple[Failure, ...]
    seconds: float


def bench(
    targets: str | Path | Iterable[str | Path],
    settings: BenchSettings | None = None,
    *,
    preset_names: str | Iterable[str] = DEFAULT_PRESETS,
    output: str | Path | None = None,
    session: Session | None = None,
) -> BenchResult:
    """Measure GGUF files, those of folders, or models that are made first.

    ``preset_names``: what to make of models. ``output``: the record's file; default: ggq-bench.json beside
    the first file. Raises any GgqError where nothing could be measured at all.
    """
    session = session or Session()
    settings = settings or BenchSettings()
    if settings.base is not None:
        gguf_file.read_model(settings.base)
    paths = find_files(
        [targets] if isinstance(targets, str | Path) else targets,
        [preset_names] if isinstance(preset_names, str) else preset_names,
        session=session,
    )
    with _Run(paths, settings, Path(output) if output else None, session) as run:
        return run.measure()


class _Run:
    """One run of measurements, with the record's folder to itself."""

    def __init__(
        self, paths: Sequence[Path], settings: BenchSettings, output: Path | None, session: Session
    ) -> None:
        if not paths:
            raise UsageProblem("There is nothing to measure.", "", "Name a GGUF file, a folder or a model.")
        self._paths = paths
        self._settings = settings
        self._session = session
        self._target = output or paths[0].absolute().parent / FILE_NAME
        self._failures: list[Failure] = []
        self._quality: QualityResult | None = None
        self._speed: dict[Subject, SpeedResult] = {}
        self._memory: dict[Subject, MemoryResult] = {}
        self._reused = 0
        self._reading: list[Unchanged] = []
        self._journal_is_false = False  # it may hold what was measured of a file that changed
        self._stack = ExitStack()

    def __enter__(self) -> _Run:
        folder = self._target.absolute().parent
        with ExitStack() as stack:
            files.make_folder(folder)
            stack.enter_context(files.lock(folder, listener=self._session.listener))
            self._work = stack.enter_context(files.staging(folder))
            self._record = Record(self._target)
            self._subjects = model_file.distinct(self._identified())
            self._environment = environment(self._session.toolchain)
            name = bench_journal.file_name(
                self._target, self._subjects, self._settings, self._session, self._environment.id
            )
            self._journal = Journal(folder / name)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _identified(self) -> list[Subject]:
        """The files that can be read. Raises the first one's error when none can."""
        found: list[Subject] = []
        for path in self._paths:
            with self._noting("file", path.name):
                self._reading.append(Unchanged(gguf_file.shards(path)))
                found.append(model_file.of(path, self._session.listener))
        if not found:
            raise self._failures[0].error
        return found

    def measure(self) -> BenchResult:
        started = time.monotonic()
        kinds = self._settings.kinds
        if Kind.QUALITY in kinds:
            with self._noting(Kind.QUALITY, None):
                self._measure_quality()
        for found in self._subjects if Kind.SPEED in kinds else ():
            with self._noting(Kind.SPEED, found.path.name):
                self._measure_speed(found)
        for found in self._subjects if Kind.MEMORY in kinds else ():
            with self._noting(Kind.MEMORY, found.path.name):
                self._measure_memory(found)
        ours = {(it.sha256, self._environment.id) for it in self._subjects}
        if not self._failures or self._journal_is_false:
            self._journal.close()
        if self._failures and not self._has_measured:
            raise self._failures[0].error
        return BenchResult(
            record=self._target,
            entries=tuple(entry for entry in self._record.entries if entry.key in ours),
            quality=self._quality,
            speed=tuple(self._speed.items()),
            memory=tuple(self._memory.items()),
            failures=tuple(self._failures),
            seconds=time.monotonic() - started,
        )

    @property
    def _has_measured(self) -> bool:
        return bool(self._quality or self._speed or self._memory or self._reused)

    @contextmanager
    def _noting(self, kind: Kind | Literal["file"], name: str | None) -> Iterator[None]:
        """Note a failure rather than lose what comes after it."""
        try:
            with ExitStack() as stack:
                for it in self._reading:
                    stack.enter_context(it.explaining())
                yield
        except GgqError as error:
            if isinstance(error, SourceChanged):
                self._journal_is_false = True
            self._failures.append(Failure(kind, name, error))
            # A single measurement's error that left nothing is raised, and told by whoever asked for it.
            if len(self._paths) > 1 or len(self._settings.kinds) > 1 or self._has_measured:
                self._say(f"{kind} of {name}: {error}" if name else str(error))

    def _say(self, text: str, level: Literal["info", "warning"] = "warning") -> None:
        self._session.listener(Notice(text, level))

    def _measure_quality(self) -> None:
        base = self._base()
        if base is None:
            return
        models = [it for it in self._subjects if it is not base and self._is_kin(it, base)]
        choice = self._settings.text
        how = self._settings.for_model(base).quality
        comparability.require(base, models, how.context)
        text = corpus.resolve(
            self._near(), text=choice.text, corpus=choice.corpus, corpus_path=choice.corpus_path,
            offline=self._session.offline, listener=self._session.listener,
        )  # fmt: skip
        with texts.unchanged(text).guard():
            found = quality.measure(
                base, models, text, how, session=self._session, work=self._work, journal=self._journal,
                parse_special=choice.parse_special,
            )  # fmt: skip
        self._require_unchanged()
        self._quality = found
        self._failures += [Failure(Kind.QUALITY, part.name, part.error) for part in found.failures]
        for it, measurement in quality_record.measurements(found, base, models, now()):
            self._record.add(it, self._environment, measurement)
        self._record.save()

    def _is_kin(self, found: Subject, base: Subject) -> bool:
        """Whether a model can have been made from the base; one of another family in the same folder is
        measured in all but quality. One that was named beside its base is refused by quality itself."""
        alike = (found.architecture, found.parameter_count) == (base.architecture, base.parameter_count)
        if not alike and self._settings.base is None:
            self._say(f"{found.path.name} was not made from {base.path.name}: no quality of it.")
        return alike or self._settings.base is not None

    def _measure_speed(self, found: Subject) -> None:
        settings = self._settings.for_model(found).speed
        key = bench_journal.key(Kind.SPEED, found, settings, self._session, self._environment.id)
        if self._done_before(Kind.SPEED, key, found):
            return

        def keep(part: SpeedResult) -> None:
            self._keep(found, part)
            self._speed[found] = part

        result = speed.measure(
            found.path, settings, session=self._session, journal=self._journal.about(key), on_part=keep
        )
        self._failures += [Failure(Kind.SPEED, found.path.name, part.error) for part in result.failures]
        if not result.failures:
            self._journal.put(key, True)

    def _measure_memory(self, found: Subject) -> None:
        settings = self._settings.for_model(found).memory
        key = bench_journal.key(Kind.MEMORY, found, settings, self._session, self._environment.id)
        if self._done_before(Kind.MEMORY, key, found):
            return

        def keep(part: MemoryResult) -> None:
            self._keep(found, part)
            self._memory[found] = part

        memory.measure(
            found.path, settings, session=self._session, journal=self._journal.about(key), on_part=keep
        )
        self._journal.put(key, True)

    def _done_before(self, kind: Kind, key: Mapping[str, Any], found: Subject) -> bool:
        """Whether the run that was broken off had come so far, and the record still has it."""
        entry = self._record.entry(found, self._environment)
        if self._journal.get(key, bool) is None or entry is None or kind not in entry.measurements.kinds:
            return False
        self._reused += 1
        self._say(f"{kind} of {found.path.name}: measured before the break; it is in the record.", "info")
        return True

    def _require_unchanged(self) -> None:
        """Raises SourceChanged, before anything of a file that changed is written down."""
        for it in self._reading:
            it.require()

    def _keep(self, found: Subject, measurement: Measurement) -> None:
        self._require_unchanged()
        self._record.add(found, self._environment, measurement)
        self._record.save()

    def _base(self) -> Subject | None:
        """The model that others are compared with: the widest type; None if there is none."""
        if self._settings.base is not None:
            wanted = gguf_file.shards(self._settings.base)[0].resolve()
            base = next(it for it in self._subjects if it.path.resolve() == wanted)
            if base.type is not None and base.type not in _BASE_TYPES:
                self._say(
                    f"{base.path.name} is quantized itself ({base.type}): what is measured is the"
                    " divergence from it, not from the model."
                )
            return base
        for kind in _BASE_TYPES:
            for found in self._subjects:
                if found.type == kind and len(self._subjects) > 1:
                    return found
        alone = len(self._subjects) == 1
        why = UsageProblem(
            "Quality was not measured.",
            "It is measured against the 16-bit GGUF, and "
            + ("one file alone was given." if alone else "none of the files is one."),
            "Name the base as well (`ggq convert-and-quantize … --keep-base` keeps it).",
        )
        if self._settings.kinds == (Kind.QUALITY,):
            raise why
        self._say(str(why))
        return None

    def _near(self) -> list[Path]:
        """Folders that may hold a text: the models' own, and those of the checkpoints they were made of."""
        folders = list(dict.fromkeys(it.path.absolute().parent for it in self._subjects))
        return folders + [source for folder in folders for source in checkpoints_of(folder)]

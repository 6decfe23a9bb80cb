"""``ggq bench``: quality, speed and memory of GGUF files, into the record beside them.

Every finished measurement is in the record at once. A journal keeps each batch of a run: where one was broken
off, or could not write its record, the same call goes on. One file's failure is noted, and the others are
measured all the same.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ggq import corpora as corpus
from ggq import model_ref
from ggq.errors import GgqError, SourceChanged, UsageProblem
from ggq.gguf import file as gguf_file
from ggq.gguf import names as gguf_names
from ggq.llamacpp import toolchain as toolchains
from ggq.llamacpp.toolchain import Toolchain
from ggq.measurement import memory, model_file, quality, record, speed
from ggq.measurement.memory import MemoryResult, MemorySettings
from ggq.measurement.model_file import Subject
from ggq.measurement.quality import QualityResult
from ggq.measurement.record import FILE_NAME, JOURNAL_NAME, Entry, Kind, Record
from ggq.measurement.settings import BenchSettings
from ggq.measurement.speed import SpeedResult, SpeedSettings
from ggq.operations.convert_and_quantize import convert_and_quantize
from ggq.operations.request import DEFAULT_PRESETS
from ggq.presets import catalogue as presets
from ggq.progress import Listener, Notice, silent
from ggq.records.environment import environment
from ggq.records.journal import Journal
from ggq.records.manifest import checkpoints_of
from ggq.session import Session
from ggq.system import files, texts
from ggq.system.unchanged import Unchanged

# What a base is: every quantization loses more than these do from each other.
_BASE_TYPES = ("F32", "BF16", "F16")


@dataclass(frozen=True)
class Failure:
    """A measurement that did not come to its end, or a file that cannot be read (``file``): of which file
    (None: of all together), and why."""

    kind: Kind | Literal["file"]
    file_name: str | None
    what: str
    why: str
    next_step: str


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
    targets: Iterable[str | Path],
    settings: BenchSettings | None = None,
    *,
    preset_names: Iterable[str] = DEFAULT_PRESETS,
    presets_file: Path | None = None,
    output: Path | None = None,
    toolchain: Toolchain | None = None,
    listener: Listener = silent,
) -> BenchResult:
    """Measure GGUF files, those of folders, or models that are made first.

    ``preset_names``, ``presets_file``: what to make of models. ``output``: the record's file; default:
    ggq-bench.json beside the first file. Raises any GgqError where nothing could be measured at all.
    """
    toolchain = toolchain or toolchains.find()
    settings = settings or BenchSettings()
    if settings.base is not None:
        gguf_file.read_model(settings.base)
    paths = find_files(
        targets, preset_names, presets_file,
        toolchain=toolchain, offline=settings.text.offline, listener=listener,
    )  # fmt: skip
    with _Session(paths, settings, output, toolchain, listener) as session:
        return session.run()


def find_files(
    targets: Iterable[str | Path],
    preset_names: Iterable[str],
    presets_file: Path | None = None,
    *,
    toolchain: Toolchain,
    offline: bool = False,
    listener: Listener = silent,
) -> list[Path]:
    """The GGUF files that ``targets`` stand for.

    A checkpoint or a model of the Hub is converted and quantized first, into a folder of its name, with its
    base.

    Raises UsageProblem for a folder that holds neither, and whatever the making raises.
    """
    found: dict[Path, None] = {}
    for target in targets:
        folder = Path(target)
        ready = ggufs(folder) if folder.is_dir() else []
        if not ready:
            if folder.is_dir() and not (folder / "config.json").exists():
                raise UsageProblem(
                    f"{folder} holds nothing to measure.",
                    "There is no model in GGUF in it, and no checkpoint (config.json).",
                    "Name a GGUF file, a folder with some, or a model.",
                )
            ref = model_ref.parse_reference(str(target))
            if ref.kind == "gguf" and ref.path is not None:
                ready = [ref.path]
            else:
                session = Session(toolchain, presets.load(presets_file), offline=offline, listener=listener)
                made = convert_and_quantize(ref, preset_names, session=session, keep_base=True)
                ready = [path for path in (made.base, *(file.paths[0] for file in made.files)) if path]
        found.update(dict.fromkeys(ready))
    return list(found)


def ggufs(folder: Path) -> list[Path]:
    """The models in a folder, of split ones the first shard: no projector, adapter or importance matrix."""
    models = []
    for path in sorted(folder.glob("*.gguf")):
        if gguf_names.parse_name(path.name).shard in (None, 1):
            try:
                is_model = gguf_file.read(path).text("general.type") in (None, "model")
            except GgqError:
                is_model = True  # it will be met with words
            if is_model:
                models.append(path)
    return models


class _Session:
    """One run of measurements, with the record's folder to itself."""

    def __init__(
        self,
        paths: Sequence[Path],
        settings: BenchSettings,
        output: Path | None,
        toolchain: Toolchain,
        listener: Listener,
    ) -> None:
        if not paths:
            raise UsageProblem("There is nothing to measure.", "", "Name a GGUF file, a folder or a model.")
        self._paths = paths
        self._settings = settings
        self._toolchain = toolchain
        self._listener = listener
        self._target = output or paths[0].absolute().parent / FILE_NAME
        self._failures: list[Failure] = []
        self._errors: list[GgqError] = []
        self._quality: QualityResult | None = None
        self._speed: dict[Subject, SpeedResult] = {}
        self._memory: dict[Subject, MemoryResult] = {}
        self._reused = 0
        self._reading: list[Unchanged] = []
        self._journal_is_false = False  # it may hold what was measured of a file that changed
        self._stack = ExitStack()

    def __enter__(self) -> _Session:
        folder = self._target.absolute().parent
        with ExitStack() as stack:
            files.make_folder(folder)
            stack.enter_context(files.lock(folder, listener=self._listener))
            self._work = stack.enter_context(files.staging(folder))
            self._record = Record(self._target)
            self._subjects = model_file.distinct(self._identified())
            self._environment = environment(self._toolchain)
            self._journal = Journal(folder / JOURNAL_NAME.format(self._identity()))
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
                found.append(model_file.of(path, self._listener))
        if not found:
            raise self._errors[0]
        return found

    def _identity(self) -> str:
        """A digest of what this run measures, how, and where to: the same command gives the same."""
        work = {
            "record": str(self._target.absolute()),
            "files": sorted(found.sha256 for found in self._subjects),
            "settings": asdict(self._settings),
            "environment": record.environment_id(self._environment),
        }
        return hashlib.sha256(json.dumps(work, sort_keys=True, default=str).encode()).hexdigest()[:12]

    def run(self) -> BenchResult:
        started = time.monotonic()
        kinds = self._settings.kinds
        if "quality" in kinds:
            with self._noting("quality", None):
                self._measure_quality()
        for found in self._subjects if "speed" in kinds else ():
            with self._noting("speed", found.path.name):
                self._measure_speed(found)
        for found in self._subjects if "memory" in kinds else ():
            with self._noting("memory", found.path.name):
                self._measure_memory(found)
        ours = {(it.sha256, record.environment_id(self._environment)) for it in self._subjects}
        if not self._failures or self._journal_is_false:
            self._journal.close()
        if self._errors and not self._has_measured:
            raise self._errors[0]
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
            self._errors.append(error)
            self._failures.append(Failure(kind, name, error.what, error.why, error.next_step))
            # A single measurement's error that left nothing is raised, and told by whoever asked for it.
            if len(self._paths) > 1 or len(self._settings.kinds) > 1 or self._has_measured:
                self._listener(Notice(f"{kind} of {name}: {error}" if name else str(error), "warning"))

    def _measure_quality(self) -> None:
        base = self._base()
        if base is None:
            return
        models = [it for it in self._subjects if it is not base and self._is_kin(it, base)]
        choice = self._settings.text
        how = replace(self._settings.for_model(base).quality, parse_special=choice.parse_special)
        quality.require_comparable(base, models, how.context)
        text = corpus.resolve(
            self._near(), text=choice.text, corpus=choice.corpus, corpus_path=choice.corpus_path,
            offline=choice.offline, listener=self._listener,
        )  # fmt: skip
        with texts.unchanged(text).guard():
            found = quality.measure(
                base, models, text, how, toolchain=self._toolchain,
                work=self._work, journal=self._journal, listener=self._listener,
            )  # fmt: skip
        self._require_unchanged()
        self._quality = found
        for part in found.failures:
            self._failures.append(Failure("quality", part.name, part.what, part.why, part.next_step))
        for it, measurement in record.quality_measurements(found, base, models):
            self._record.add(it, self._environment, "quality", measurement)
        self._record.save()

    def _is_kin(self, found: Subject, base: Subject) -> bool:
        """Whether a model can have been made from the base; one of another family in the same folder is
        measured in all but quality. One that was named beside its base is refused by quality itself."""
        alike = (found.architecture, found.parameter_count) == (base.architecture, base.parameter_count)
        if not alike and self._settings.base is None:
            self._listener(
                Notice(f"{found.path.name} was not made from {base.path.name}: no quality of it.", "warning")
            )
        return alike or self._settings.base is not None

    def _measure_speed(self, found: Subject) -> None:
        settings = self._settings.for_model(found).speed
        key = self._key("speed", found, settings)
        if self._done_before(key, found):
            return

        def keep(part: SpeedResult) -> None:
            self._keep(found, "speed", part)
            self._speed[found] = part

        result = speed.measure(
            found.path, settings,
            toolchain=self._toolchain, journal=self._journal.about(key), listener=self._listener,
            on_part=keep,
        )  # fmt: skip
        for part in result.failures:
            self._failures.append(Failure("speed", found.path.name, part.what, part.why, part.next_step))
        if not result.failures:
            self._journal.put(key, True)

    def _measure_memory(self, found: Subject) -> None:
        settings = self._settings.for_model(found).memory
        key = self._key("memory", found, settings)
        if self._done_before(key, found):
            return

        def keep(part: MemoryResult) -> None:
            self._keep(found, "memory", part)
            self._memory[found] = part

        memory.measure(
            found.path, settings,
            toolchain=self._toolchain, journal=self._journal.about(key), listener=self._listener,
            on_part=keep,
        )  # fmt: skip
        self._journal.put(key, True)

    def _key(self, kind: Kind, found: Subject, settings: SpeedSettings | MemorySettings) -> dict[str, Any]:
        return {
            "kind": kind,
            "model": found.sha256,
            "settings": asdict(settings),
            "environment": record.environment_id(self._environment),
        }

    def _done_before(self, key: Mapping[str, Any], found: Subject) -> bool:
        """Whether the run that was broken off had come so far, and the record still has it."""
        kept = {entry.key: entry for entry in self._record.entries}
        entry = kept.get((found.sha256, key["environment"]))
        if self._journal.get(key, bool) is None or entry is None or key["kind"] not in entry.measurements:
            return False
        self._reused += 1
        self._listener(
            Notice(f"{key['kind']} of {found.path.name}: measured before the break; it is in the record.")
        )
        return True

    def _require_unchanged(self) -> None:
        """Raises SourceChanged, before anything of a file that changed is written down."""
        for it in self._reading:
            it.require()

    def _keep(self, found: Subject, kind: Kind, result: SpeedResult | MemoryResult) -> None:
        self._require_unchanged()
        self._record.add(found, self._environment, kind, asdict(result))
        self._record.save()

    def _base(self) -> Subject | None:
        """The model that others are compared with: the widest type; None if there is none."""
        if self._settings.base is not None:
            wanted = gguf_file.shards(self._settings.base)[0].resolve()
            base = next(it for it in self._subjects if it.path.resolve() == wanted)
            if base.type is not None and base.type not in _BASE_TYPES:
                self._listener(
                    Notice(
                        f"{base.path.name} is quantized itself ({base.type}): what is measured is the"
                        " divergence from it, not from the model.",
                        "warning",
                    )
                )
            return base
        for kind in _BASE_TYPES:
            for found in self._subjects:
                if found.type == kind and len(self._subjects) > 1:
                    return found
        alone = len(self._subjects) == 1
        why = UsageProblem(
            "Quality was not measured.",
            "It is measured against the 16-bit base, and "
            + ("one file alone was given." if alone else "none of the files is one."),
            "Name the base as well (`ggq convert-and-quantize … --keep-base` keeps it).",
        )
        if self._settings.kinds == ("quality",):
            raise why
        self._listener(Notice(str(why), "warning"))
        return None

    def _near(self) -> list[Path]:
        """Folders that may hold a text: the models' own, and those of the checkpoints they were made of."""
        folders = list(dict.fromkeys(it.path.absolute().parent for it in self._subjects))
        return folders + [source for folder in folders for source in checkpoints_of(folder)]

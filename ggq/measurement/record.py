"""The record beside the models: what was measured of each file, on which machine, with every sample.

One JSON file per folder. An entry is of one file (its sha256) on one machine and build; what is measured
again takes the place of the old, and what was not measured this time stays.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from ggq.errors import OutputProblem, UsageProblem
from ggq.measurement.memory import MemoryCell, MemoryResult
from ggq.measurement.model_file import ModelFile, Subject
from ggq.measurement.quality_record import QualityMeasurement
from ggq.measurement.speed import SpeedFigure, SpeedResult
from ggq.measurement.words import Kind
from ggq.records import manifest
from ggq.records.environment import Environment
from ggq.system import codec, files
from ggq.system.codec import LeftOutIfDefault, WrongContent

FILE_NAME = manifest.BENCH_RECORD

_SCHEMA_VERSION: Literal[1] = 1
_KIND: Literal["ggq-bench"] = "ggq-bench"

Measurement = QualityMeasurement | SpeedResult | MemoryResult
T = TypeVar("T")


@dataclass(frozen=True)
class Measurements:
    """What was measured of a file; None: not measured."""

    quality: Annotated[QualityMeasurement | None, LeftOutIfDefault()] = None
    speed: Annotated[SpeedResult | None, LeftOutIfDefault()] = None
    memory: Annotated[MemoryResult | None, LeftOutIfDefault()] = None

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return tuple(kind for kind in Kind if getattr(self, kind) is not None)

    @property
    def latest(self) -> str:
        """When something was measured last, in UTC; empty: nothing was."""
        return max((getattr(self, kind).measured_at for kind in self.kinds), default="")


@dataclass(frozen=True)
class Entry:
    """What was measured of one file on one machine. ``environment_id``: the environment's."""

    model: ModelFile
    environment: Environment
    environment_id: str
    measurements: Measurements = field(default_factory=Measurements)

    @property
    def key(self) -> tuple[str, str]:
        return self.model.sha256, self.environment_id


@dataclass(frozen=True)
class _File:
    schema_version: Literal[1]
    kind: Literal["ggq-bench"]
    entries: tuple[Entry, ...]


class Record:
    """The entries of one folder. Raises OutputProblem when the file there is not one that ggq knows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries = {entry.key: entry for entry in _read(path)}

    @property
    def entries(self) -> tuple[Entry, ...]:
        return tuple(self._entries.values())

    def entry(self, subject: Subject, environment: Environment) -> Entry | None:
        """What is known of a file on a machine."""
        return self._entries.get((subject.sha256, environment.id))

    def add(self, subject: Subject, environment: Environment, measurement: Measurement) -> None:
        """Put a measurement in, in the place of an older one of its kind, file and machine."""
        fresh = Entry(subject.recorded, environment, environment.id)
        known = self._entries.get(fresh.key)
        measurements = _with(known.measurements if known else Measurements(), measurement)
        self._entries[fresh.key] = replace(fresh, measurements=measurements)

    def save(self) -> None:
        """Write the file, atomically. Raises OutputProblem, DiskFull."""
        files.write_json(self.path, codec.encode(_File(_SCHEMA_VERSION, _KIND, self.entries)))


def _read(path: Path) -> tuple[Entry, ...]:
    next_step = "Name another file; where a new record is to be written, move this one away."
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return codec.decode(_File, raw).entries
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise OutputProblem(
            f"{path} cannot be read.", f"{error.strerror}.", "Change its permissions."
        ) from error
    except ValueError as error:
        why = f"{error}." if isinstance(error, WrongContent) else "It is not JSON."
        raise OutputProblem(
            f"{path} is not a record of measurements that this ggq knows.", why, next_step
        ) from error


def load(path: Path) -> tuple[Entry, ...]:
    """The entries of a record, or of the one in a folder. Raises UsageProblem where there is none,
    OutputProblem where it is not a record."""
    file = path / FILE_NAME if path.is_dir() else path
    if not file.is_file():
        raise UsageProblem(
            f"There is no record {file}.",
            "It is written when something is measured.",
            "Name a record, or measure first with `ggq bench`.",
        )
    entries = Record(file).entries
    if not entries:
        raise UsageProblem(f"{file} holds no measurement.", "", "Measure first with `ggq bench`.")
    return entries


# --- a new measurement over an old one -------------------------------------------------------------------


def _with(old: Measurements, new: Measurement) -> Measurements:
    """Figures that were not measured again stay where all else was alike, and a quality that was measured on
    more tokens stays as it is."""
    if isinstance(new, QualityMeasurement):
        return replace(old, quality=_quality(old.quality, new))
    if isinstance(new, SpeedResult):
        return replace(old, speed=_speed(old.speed, new))
    return replace(old, memory=_memory(old.memory, new))


def _quality(old: QualityMeasurement | None, new: QualityMeasurement) -> QualityMeasurement:
    def ground(it: QualityMeasurement) -> tuple[Any, ...]:
        return it.ground.base, it.ground.text, it.ground.context, it.ground.offload

    if old is None or ground(old) != ground(new):
        return new
    return old if old.ground.scored_tokens > new.ground.scored_tokens else new


def _speed(old: SpeedResult | None, new: SpeedResult) -> SpeedResult:
    def how(it: SpeedResult) -> tuple[str, ...]:
        return it.type_k, it.type_v, it.flash_attention, it.load_mode

    def key(it: SpeedFigure) -> tuple[Any, ...]:
        return it.test, it.tokens, it.depth_tokens, it.n_gpu_layers

    if old is None or how(old) != how(new):
        return new
    return replace(new, figures=_joined(old.figures, new.figures, key))


def _memory(old: MemoryResult | None, new: MemoryResult) -> MemoryResult:
    def key(it: MemoryCell) -> tuple[Any, ...]:
        return it.context_tokens, it.type_k, it.type_v, it.load_mode

    if old is None or old.offload != new.offload:
        return new
    return replace(new, cells=_joined(old.cells, new.cells, key, is_empty=lambda cell: cell.measured is None))


def _joined(
    old: Sequence[T],
    new: Sequence[T],
    key: Callable[[T], tuple[Any, ...]],
    is_empty: Callable[[T], bool] = lambda part: False,
) -> tuple[T, ...]:
    """What is new comes first: a table shows it before an older figure of another length or context. A part
    that was only predicted (``is_empty``) takes no measured one's place."""
    fresh = [part for part in new if not is_empty(part)]
    known = {key(part) for part in fresh}
    kept = [part for part in old if key(part) not in known]
    known |= {key(part) for part in kept}
    return (*fresh, *kept, *(part for part in new if key(part) not in known))

"""What folders hold: the files of models, and what was measured of each of them on which machine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ggq.errors import UsageProblem
from ggq.gguf import names as gguf_names
from ggq.measurement.record import Entry, Record
from ggq.measurement.summary import Row, rows
from ggq.records.manifest import BENCH_RECORD, MANIFEST_SUFFIX, Manifest
from ggq.system import codec, files

Test = Literal["prompt", "generation"]
TESTS: tuple[Test, ...] = ("prompt", "generation")


@dataclass(frozen=True)
class SpeedPoint:
    """A measured speed in tokens/s: the median, the slowest and the fastest repetition. ``depth_tokens``
    were in the context before; ``n_gpu_layers`` on GPUs."""

    test: Test
    tokens: int
    depth_tokens: int
    n_gpu_layers: int
    threads: int
    median: float
    slowest: float
    fastest: float


@dataclass(frozen=True)
class MemoryPoint:
    """RAM with a full context: predicted, by llama.cpp's own account, and measured, at its peak."""

    context_tokens: int
    cache: str
    load_mode: str
    predicted_bytes: int
    measured_bytes: int


@dataclass(frozen=True)
class Ground:
    """What a quality was measured on: files are compared only on the same one."""

    base: str
    base_sha256: str
    text: str
    text_sha256: str
    context_tokens: int
    chunks: int
    scored_tokens: int

    @property
    def identity(self) -> tuple[str, str, int]:
        return self.base_sha256, self.text_sha256, self.context_tokens


@dataclass(frozen=True)
class Measured:
    """A file of a model as it was measured on one machine. ``path``: where it lies (None: it does not, or
    no longer); ``ground``: None where no quality was measured."""

    model: str
    machine: str
    row: Row
    path: Path | None
    ground: Ground | None
    speeds: tuple[SpeedPoint, ...] = ()
    memories: tuple[MemoryPoint, ...] = ()

    @property
    def preset(self) -> str:
        return self.row.name

    @property
    def label(self) -> str:
        return f"{self.model} {self.preset}"


@dataclass(frozen=True)
class Collection:
    """Everything that was found. ``machines``: environment by its id; ``chosen``: the preset that ggq chose
    before anything was made, by model; ``unmeasured``: files that manifests name and nothing was measured
    of."""

    measured: tuple[Measured, ...]
    machines: Mapping[str, Mapping[str, Any]]
    chosen: Mapping[str, str] = field(default_factory=dict)
    unmeasured: tuple[Path, ...] = ()

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(it.model for it in self.measured))

    def of(self, model: str, machine: str | None = None) -> tuple[Measured, ...]:
        """What was measured of one model, on all machines or on one."""
        return tuple(it for it in self.measured if it.model == model and machine in (None, it.machine))

    def machines_of(self, model: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(it.machine for it in self.of(model)))


def gather(places: Sequence[Path]) -> Collection:
    """Read the records and the manifests of folders; a record may be named itself.

    Raises UsageProblem where a place has neither or nothing was measured anywhere, OutputProblem for a file
    that is not what its name says.
    """
    found: dict[tuple[str, str], Measured] = {}
    machines: dict[str, Mapping[str, Any]] = {}
    chosen: dict[str, str] = {}
    named: dict[Path, str] = {}
    for place in places:
        folder = place if place.is_dir() else place.parent
        record = place / BENCH_RECORD if place.is_dir() else place
        manifests = sorted(folder.glob(f"*{MANIFEST_SUFFIX}"))
        if not record.is_file() and not manifests:
            raise UsageProblem(
                f"{place} holds nothing that a report could show.",
                f"There is neither a record of measurements ({BENCH_RECORD}) nor a manifest in it.",
                "Name a folder that ggq made files in, and measure them with `ggq bench FOLDER`.",
            )
        entries = Record(record).entries if record.is_file() else ()
        for entry in entries:
            machines.setdefault(entry.environment_id, codec.encode(entry.environment))
        for it in _measured(entries, folder):
            found.setdefault((it.row.sha256, it.machine), it)
        for path in manifests:
            manifest = Manifest(path)
            model = path.name.removesuffix(MANIFEST_SUFFIX)
            for preset in manifest.chosen_presets.values():
                chosen[model] = preset
            named.update(_made(manifest))
    if not found:
        raise UsageProblem(
            "Nothing was measured of these files.",
            f"There is no record of measurements ({BENCH_RECORD}) in {_listed(places)}.",
            f"Measure them first: ggq bench {places[0]}",
        )
    known = {it.row.file_name for it in found.values()}
    left = tuple(path for path in named if path.is_file() and path.name not in known)
    return Collection(tuple(found.values()), machines, chosen, left)


def _listed(places: Iterable[Path]) -> str:
    return ", ".join(map(str, places))


def _made(manifest: Manifest) -> Iterator[tuple[Path, str]]:
    """The GGUF files of a manifest, with the step that made each."""
    for name, step in manifest.steps.items():
        for output in step.outputs:
            if output.name.endswith(".gguf"):
                yield manifest.folder / output.name, name


def _measured(entries: Sequence[Entry], folder: Path) -> Iterator[Measured]:
    of_key = {entry.key: entry for entry in entries}
    for row in rows(entries):
        entry = of_key[row.sha256, row.environment_id]
        path = folder / row.file_name
        yield Measured(
            model=gguf_names.parse_name(row.file_name).model,
            machine=row.environment_id,
            row=row,
            path=path if path.is_file() else None,
            ground=_ground(entry),
            speeds=tuple(_speeds(entry)),
            memories=tuple(_memories(entry)),
        )


def _ground(entry: Entry) -> Ground | None:
    if entry.measurements.quality is None:
        return None
    ground = entry.measurements.quality.ground
    return Ground(
        base=ground.base.name,
        base_sha256=ground.base.sha256,
        text=ground.text.name,
        text_sha256=ground.text.sha256,
        context_tokens=ground.context,
        chunks=ground.chunks,
        scored_tokens=ground.scored_tokens,
    )


def _speeds(entry: Entry) -> Iterator[SpeedPoint]:
    speed = entry.measurements.speed
    for figure in speed.figures if speed else ():
        samples, median = figure.speed.samples_tokens_per_s, figure.speed.median_tokens_per_s
        yield SpeedPoint(
            test=figure.test,
            tokens=figure.tokens,
            depth_tokens=figure.depth_tokens,
            n_gpu_layers=figure.n_gpu_layers,
            threads=figure.threads,
            median=median,
            slowest=min(samples, default=median),
            fastest=max(samples, default=median),
        )


def _memories(entry: Entry) -> Iterator[MemoryPoint]:
    memory = entry.measurements.memory
    for cell in memory.cells if memory else ():
        if cell.measured is None:
            continue
        yield MemoryPoint(
            context_tokens=cell.context_tokens,
            cache=cell.type_k if cell.type_k == cell.type_v else f"{cell.type_k}/{cell.type_v}",
            load_mode=cell.load_mode,
            predicted_bytes=cell.predicted.host_bytes,
            measured_bytes=cell.measured.peaks.resident_bytes,
        )


def machine_name(environment: Mapping[str, Any]) -> str:
    """``AMD EPYC 9B14, 2 cores, 8.3 GB``, with its GPUs."""
    parts = [str(environment.get("cpu") or "an unknown CPU")]
    if cores := environment.get("usable_cores"):
        parts.append(f"{cores} cores")
    if ram := environment.get("ram_total_bytes"):
        parts.append(files.human_bytes(ram))
    parts += [str(gpu.get("description") or gpu.get("name")) for gpu in environment.get("gpus") or ()]
    return ", ".join(parts)

"""The charts of a report: what bytes buy, how speed falls with the context, memory as it was predicted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ggq.measurement import tables
from ggq.publishing.charts import Axis, Chart, Point, Series
from ggq.publishing.collection import (
    TESTS,
    Collection,
    Measured,
    MemoryPoint,
    SpeedPoint,
    Test,
    machine_name,
)
from ggq.system import files

_CONFIDENCE = 1.96
_MANY_TIMES = 12  # from here on a linear axis would hide the slow ones
_UNITS = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"), (1, "B"))
_TEST_NAMES = {"prompt": "Prompt processing (pp)", "generation": "Generation (tg)"}


def charts(found: Collection) -> list[Chart]:
    """All charts that what was measured allows."""
    made = [_quality(found, model, number) for number, model in enumerate(found.models)]
    groups = [_Group(found, model, machine) for model in found.models for machine in found.machines_of(model)]
    # Of one kind all models and machines stand side by side.
    for test in TESTS:
        for along in ("context", "layers"):
            made += [_speed(group, test, along, number) for number, group in enumerate(groups)]
    made += [_memory(group, number) for number, group in enumerate(groups)]
    return [chart for chart in made if chart is not None]


@dataclass(frozen=True)
class _Group:
    """What was measured of one model on one machine."""

    found: Collection
    model: str
    machine: str

    @property
    def files(self) -> tuple[Measured, ...]:
        return self.found.of(self.model, self.machine)

    @property
    def words(self) -> str:
        """What a title adds where there are several models or machines."""
        parts = [self.model] if len(self.found.models) > 1 else []
        if len(self.found.machines) > 1:
            parts.append(machine_name(self.found.machines[self.machine]))
        return "".join(f", {part}" for part in parts)


# --- size against KLD ------------------------------------------------------------------------------------


def comparable(measured: Sequence[Measured]) -> list[Measured]:
    """The files whose KLD was measured on one ground: of several grounds, that of most files; each file
    once, since its loss does not depend on the machine."""
    known = [it for it in measured if it.ground and it.row.mean_kld]
    counted = Counter(it.ground.identity for it in known if it.ground)
    if not counted:
        return []
    ground = counted.most_common(1)[0][0]
    once = {it.row.sha256: it for it in known if it.ground and it.ground.identity == ground}
    return sorted(once.values(), key=lambda it: it.row.file_bytes)


def on_front(one: Measured, others: Sequence[Measured]) -> bool:
    """Whether none of the others is as small and as close, and better in one of the two."""
    return not any(_dominates(other, one) for other in others)


def _dominates(one: Measured, other: Measured) -> bool:
    mine, theirs = ((it.row.file_bytes, kld(it)) for it in (one, other))
    return mine != theirs and mine[0] <= theirs[0] and mine[1] <= theirs[1]


def kld(it: Measured) -> float:
    return it.row.mean_kld.value if it.row.mean_kld else 0.0


def _quality(found: Collection, model: str, number: int) -> Chart | None:
    shown = [it for it in comparable(found.of(model)) if kld(it) > 0]
    if not shown or (ground := shown[0].ground) is None:
        return None
    unit_bytes, unit = _unit(max(it.row.file_bytes for it in shown))
    front = [it for it in shown if on_front(it, shown)]

    def point(it: Measured) -> Point:
        error = _CONFIDENCE * ((it.row.mean_kld and it.row.mean_kld.standard_error) or 0.0)
        return Point(
            it.row.file_bytes / unit_bytes,
            kld(it),
            f"{it.preset}: {files.human_bytes(it.row.file_bytes)}, KLD {tables.relative(it.row.mean_kld)}",
            low=kld(it) - error,
            high=kld(it) + error,
            label=it.preset,
            hollow=it not in front,
        )

    stairs = Series("Pareto front", tuple(map(point, front)), index=-1, steps=True, marked=False)
    names = ", ".join(it.preset for it in front)
    return Chart(
        id=f"quality-{number}",
        title=f"{model}: what a preset's bytes buy",
        summary=f"File size against mean KLD of {len(shown)} files. On the Pareto front: {names}.",
        x=Axis(f"file size, {unit}"),
        y=Axis("mean KLD, nats per token", "log", words=lambda value: f"{value:.4g}"),
        series=(stairs, Series("files", tuple(map(point, shown)), index=0, line=False)),
        columns=("preset", "size", "mean KLD", "Pareto front"),
        rows=tuple(
            (
                it.preset,
                files.human_bytes(it.row.file_bytes),
                tables.relative(it.row.mean_kld),
                "yes" if it in front else "no",
            )
            for it in shown
        ),
        note=f"Against {ground.base}, on {ground.text}: {ground.chunks} chunks of {ground.context_tokens}"
        " tokens. Bars: 95 %. Filled: no other file is both smaller and closer.",
        legend=False,
    )


def _unit(most_bytes: int) -> tuple[int, str]:
    return next(unit for unit in _UNITS if most_bytes >= unit[0])


# --- speed -----------------------------------------------------------------------------------------------


def _speed(group: _Group, test: Test, along: str, number: int) -> Chart | None:
    """Speed against the context (with the most layers on GPUs), or against layers (in an empty context)."""
    chosen = [(it.preset, _line(it, test, along)) for it in group.files]
    lines = [(index, name, points) for index, (name, points) in enumerate(chosen) if len(points) > 1]
    if not lines:
        return None
    of = _along(along)
    words = "tokens in the context before" if along == "context" else "layers on GPUs (-ngl)"
    low, high = _bounds(group.found, test)

    def point(name: str, each: SpeedPoint) -> Point:
        text = f"{name}: {_rate(each.median)} t/s at {of(each):,}"
        return Point(of(each), each.median, text, low=each.slowest, high=each.fastest)

    return Chart(
        id=f"{test}-{along}-{number}",
        title=f"{_TEST_NAMES[test]} against {'context' if along == 'context' else '-ngl'}{group.words}",
        summary=f"Tokens per second of {len(lines)} files, against {words}.",
        x=Axis(words),
        # One scale for all, so that charts side by side can be compared.
        y=Axis(
            "tokens/s",
            "log" if high > _MANY_TIMES * low else "linear",
            from_zero=high <= _MANY_TIMES * low,
            bounds=(low, high),
        ),
        series=tuple(
            Series(name, tuple(point(name, each) for each in points), index) for index, name, points in lines
        ),
        columns=("file", words, "tokens/s", "slowest", "fastest"),
        rows=tuple(
            (name, f"{of(each):,}", _rate(each.median), _rate(each.slowest), _rate(each.fastest))
            for _, name, points in lines
            for each in points
        ),
        note="Medians; bars: the slowest and the fastest repetition.",
    )


def _along(word: str) -> Callable[[SpeedPoint], int]:
    return (lambda it: it.depth_tokens) if word == "context" else (lambda it: it.n_gpu_layers)


def _line(it: Measured, test: Test, along: str) -> list[SpeedPoint]:
    """The points of one file: alike in all but what the chart is along."""
    points = [each for each in it.speeds if each.test == test]
    if not points:
        return []
    tokens = Counter(each.tokens for each in points).most_common(1)[0][0]
    points = [each for each in points if each.tokens == tokens]
    if along == "context":
        most = max(each.n_gpu_layers for each in points)
        points = [each for each in points if each.n_gpu_layers == most]
    else:
        least = min(each.depth_tokens for each in points)
        points = [each for each in points if each.depth_tokens == least]
    return sorted(points, key=_along(along))


def _bounds(found: Collection, test: Test) -> tuple[float, float]:
    """The slowest and the fastest of a test, on any machine."""
    every = [each for it in found.measured for each in it.speeds if each.test == test]
    return min(each.slowest for each in every), max(each.fastest for each in every)


def _rate(tokens_per_s: float) -> str:
    return f"{tokens_per_s:,.{0 if tokens_per_s >= 100 else 1 if tokens_per_s >= 10 else 2}f}"


# --- memory ----------------------------------------------------------------------------------------------


def _memory(group: _Group, number: int) -> Chart | None:
    shown = [(index, it) for index, it in enumerate(group.files) if it.memories]
    if not shown:
        return None
    everything = [each for _, it in shown for each in it.memories]
    sizes = [size for each in everything for size in (each.predicted_bytes, each.measured_bytes)]
    unit_bytes, unit = _unit(max(sizes))
    bounds = (min(sizes) / unit_bytes, max(sizes) / unit_bytes)

    def point(it: Measured, each: MemoryPoint) -> Point:
        text = (
            f"{it.preset}, context {each.context_tokens:,}, cache {each.cache}, {each.load_mode}:"
            f" predicted {files.human_bytes(each.predicted_bytes)},"
            f" measured {files.human_bytes(each.measured_bytes)}"
        )
        return Point(each.predicted_bytes / unit_bytes, each.measured_bytes / unit_bytes, text)

    equal = Series("as predicted", tuple(Point(it, it, "") for it in bounds), index=-1, marked=False)
    drawn = [
        Series(it.preset, tuple(point(it, each) for each in it.memories), index, line=False)
        for index, it in shown
    ]
    shares = [each.measured_bytes / each.predicted_bytes - 1 for each in everything if each.predicted_bytes]
    worst = max(shares, key=abs, default=0.0)
    return Chart(
        id=f"memory-{number}",
        title=f"Memory, predicted and measured{group.words}",
        summary=f"{len(everything)} runs; the farthest from its prediction took {abs(worst):.0%}"
        f" {'more' if worst > 0 else 'less'}.",
        x=Axis(f"predicted, {unit}", bounds=bounds),
        y=Axis(f"measured, {unit}", bounds=bounds),
        series=(equal, *drawn),
        columns=("file", "context", "cache", "load", "predicted", "measured"),
        rows=tuple(
            (
                it.preset,
                f"{each.context_tokens:,}",
                each.cache,
                each.load_mode,
                files.human_bytes(each.predicted_bytes),
                files.human_bytes(each.measured_bytes),
            )
            for _, it in shown
            for each in it.memories
        ),
        note="RAM with the context filled: llama.cpp's buffers and the program, against the peak that was"
        " measured. On the line: exactly as predicted; below it: less was taken.",
    )

"""The figures of two records that are compared: their values, the noise, and what else differs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, TypeVar

from ggq.llamacpp.perplexity import Divergence, Estimate
from ggq.measurement import noise
from ggq.measurement.noise import ENOUGH_ROUNDS, StandardError
from ggq.measurement.quality_record import MeasuredRound, QualityMeasurement
from ggq.measurement.record import Entry
from ggq.measurement.speed import SpeedFigure, SpeedResult

_MEMORY_SHARE, _MEMORY_BYTES = 0.01, 8 << 20

V = TypeVar("V")


class Figure(StrEnum):
    """Main figures of a file, with their unit (KLD: nats, top-1: a share)."""

    FILE_BYTES = "file_bytes"
    PERPLEXITY = "perplexity"
    MEAN_KLD = "mean_kld"
    SAME_TOP = "same_top"
    PROMPT_TOKENS_PER_S = "prompt_tokens_per_s"
    GENERATION_TOKENS_PER_S = "generation_tokens_per_s"
    RAM_BYTES = "ram_bytes"
    VRAM_BYTES = "vram_bytes"


@dataclass(frozen=True)
class Held:
    """Two values of a figure. ``noise``: what their difference must exceed, None where that is not known;
    ``note``: why they cannot be compared, or what else differs; ``comparable``: whether a ratio means
    anything."""

    one: Estimate | None
    other: Estimate | None
    noise: float | None = None
    note: str = ""
    comparable: bool = True


def held(figure: Figure, one: Entry, other: Entry) -> Held:
    """A figure of both entries."""
    return _READERS[figure](one, other)


def _size(one: Entry, other: Entry) -> Held:
    return Held(Estimate(one.model.file_bytes, 0.0), Estimate(other.model.file_bytes, 0.0), noise=0.0)


def _noise(error: StandardError | None) -> float | None:
    return None if error is None else error.noise


# --- quality ---------------------------------------------------------------------------------------------


def _perplexity(one: Entry, other: Entry) -> Held:
    return _quality(one, other, lambda it: it.perplexity, _perplexity_error, with_base=False)


def _divergence(of: Callable[[Divergence], Estimate]) -> Callable[[Entry, Entry], Held]:
    def figure(it: QualityMeasurement) -> Estimate | None:
        return of(it.divergence) if it.divergence else None

    def error(one: Sequence[MeasuredRound], other: Sequence[MeasuredRound]) -> StandardError:
        pairs = zip(one, other, strict=True)
        return noise.of_mean([of(b.divergence).value - of(a.divergence).value for a, b in pairs])

    return lambda one, other: _quality(one, other, figure, error, with_base=True)


def _quality(
    one: Entry,
    other: Entry,
    of: Callable[[QualityMeasurement], Estimate | None],
    paired_error: Callable[[Sequence[MeasuredRound], Sequence[MeasuredRound]], StandardError],
    *,
    with_base: bool,
) -> Held:
    """``paired_error``: of a difference, from the differences on each excerpt."""
    a, b = one.measurements.quality, other.measurements.quality
    left, right = of(a) if a else None, of(b) if b else None
    if a is None or b is None or left is None or right is None:
        return Held(left, right)
    if why_not := _other_ground(a, b, with_base=with_base):
        return Held(left, right, note=why_not, comparable=False)
    if len(a.rounds) >= ENOUGH_ROUNDS:
        return Held(left, right, paired_error(a.rounds, b.rounds).noise)
    error = noise.independent(*(noise.of_text(it, _rounds(found)) for it, found in ((left, a), (right, b))))
    return Held(left, right, _noise(error))


def _other_ground(one: QualityMeasurement, other: QualityMeasurement, *, with_base: bool) -> str:
    """Why two measurements of quality say nothing about each other; empty: they do."""
    a, b = one.ground, other.ground
    if a.text.sha256 != b.text.sha256:
        names = (f"{text.name} ({text.sha256[:8]})" for text in (a.text, b.text))
        return f"measured on different texts, {' and '.join(names)}"
    if a.parse_special != b.parse_special:
        return "measured with and without --parse-special"
    if a.context != b.context:
        return f"measured with contexts of {a.context} and {b.context} tokens"
    if a.text_tokens != b.text_tokens:
        return f"the text is {a.text_tokens} tokens to one and {b.text_tokens} to the other"
    if _excerpts(one) != _excerpts(other):
        return f"measured on different pieces of the text, {a.chunks} and {b.chunks} chunks"
    if with_base and a.base.sha256 != b.base.sha256:
        return f"compared with different 16-bit GGUFs, {a.base.name} and {b.base.name}"
    return ""


def _excerpts(found: QualityMeasurement) -> list[object]:
    """What was scored; a base's entry does not hold it, but what it follows from."""
    ground = found.ground
    return [part.excerpt for part in found.rounds] or [ground.until, ground.seed, ground.chunks]


def _rounds(found: QualityMeasurement) -> int:
    """How many; a base's entry does not hold them: they were enough to take their spread, or are taken for
    that."""
    return len(found.rounds) if found.divergence else ENOUGH_ROUNDS


def _perplexity_error(one: Sequence[MeasuredRound], other: Sequence[MeasuredRound]) -> StandardError:
    """Means are of logarithms there; d(exp x) = exp(x) dx."""
    logs = [[math.log(part.divergence.perplexity.value) for part in rounds] for rounds in (one, other)]
    level = math.exp(statistics.fmean(logs[0] + logs[1]))
    return noise.of_mean([level * (b - a) for a, b in zip(*logs, strict=True)])


# --- speed and memory ------------------------------------------------------------------------------------


def _speed(test: Literal["prompt", "generation"]) -> Callable[[Entry, Entry], Held]:
    def both(one: Entry, other: Entry) -> Held:
        a, b = one.measurements.speed, other.measurements.speed
        mine, theirs, note = _alike(_speeds(a, test), _speeds(b, test))
        left, right = (it.speed.estimate if it else None for it in (mine, theirs))
        if a is None or b is None or mine is None or theirs is None or note:
            return Held(left, right, note=note, comparable=False)
        error = noise.independent(noise.of_sitting(mine.speed), noise.of_sitting(theirs.speed))
        return Held(left, right, _noise(error), _unlike(a, b, mine, theirs))

    return both


def _memory(where: Literal["ram", "vram"]) -> Callable[[Entry, Entry], Held]:
    def both(one: Entry, other: Entry) -> Held:
        mine, theirs, note = _alike(_peaks(one, where), _peaks(other, where))
        left, right = (None if count is None else Estimate(count) for count in (mine, theirs))
        if mine is None or theirs is None or note:
            return Held(left, right, note=note, comparable=False)
        return Held(left, right, max(_MEMORY_BYTES, _MEMORY_SHARE * max(mine, theirs)))

    return both


def _alike(one: Mapping[str, V], other: Mapping[str, V]) -> tuple[V | None, V | None, str]:
    """What was measured in the same way, by the words for that way; else the first of each, and a note."""
    common = next((way for way in one if way in other), None)
    if common is not None:
        return one[common], other[common], ""
    a, b = (next(iter(ways), None) for ways in (one, other))
    note = f"measured with {a} and {b}" if a and b else ""
    return one.get(a or ""), other.get(b or ""), note


def _speeds(speed: SpeedResult | None, test: str) -> dict[str, SpeedFigure]:
    """The figures of a test, the shallowest first, each with the most layers on GPUs."""
    figures = [figure for figure in speed.figures if figure.test == test] if speed else []
    figures.sort(key=lambda figure: (figure.depth_tokens, -figure.n_gpu_layers))
    found: dict[str, SpeedFigure] = {}
    for figure in figures:
        found.setdefault(str(figure.point), figure)
    return found


def _unlike(a: SpeedResult, b: SpeedResult, mine: SpeedFigure, theirs: SpeedFigure) -> str:
    """In what else two figures differ."""
    words = (
        ("layers on GPUs", mine.n_gpu_layers, theirs.n_gpu_layers),
        ("threads", mine.threads, theirs.threads),
        ("type of the cache", f"{a.type_k}/{a.type_v}", f"{b.type_k}/{b.type_v}"),
        ("flash attention", a.flash_attention, b.flash_attention),
        ("load mode", a.load_mode, b.load_mode),
    )
    return "; ".join(f"{what}: {this} and {that}" for what, this, that in words if this != that)


def _peaks(entry: Entry, where: str) -> dict[str, int]:
    """Peaks in bytes by what was run."""
    found: dict[str, int] = {}
    memory = entry.measurements.memory
    for cell in memory.cells if memory else ():
        run = cell.measured
        way = f"context {cell.context_tokens}, cache {cell.type_k}/{cell.type_v}, load mode {cell.load_mode}"
        if memory:
            way += f", {memory.offload.n_gpu_layers} layers on GPUs"
        peak = None if run is None else run.peaks.resident_bytes if where == "ram" else run.vram_bytes
        if peak is not None:
            found[way] = peak
    return found


_READERS: Mapping[Figure, Callable[[Entry, Entry], Held]] = {
    Figure.FILE_BYTES: _size,
    Figure.PERPLEXITY: _perplexity,
    Figure.MEAN_KLD: _divergence(lambda it: it.mean_kld),
    Figure.SAME_TOP: _divergence(lambda it: it.same_top),
    Figure.PROMPT_TOKENS_PER_S: _speed("prompt"),
    Figure.GENERATION_TOKENS_PER_S: _speed("generation"),
    Figure.RAM_BYTES: _memory("ram"),
    Figure.VRAM_BYTES: _memory("vram"),
}

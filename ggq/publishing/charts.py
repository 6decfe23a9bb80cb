"""Charts as places on a drawing: what a template needs to write them as SVG.

Each chart is drawn twice, for a wide page and for a phone: shrunk letters could not be read.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

Scale = Literal["linear", "log"]
_LETTER = 0.56  # of a letter's height: the mean width
_FONT = 12


@dataclass(frozen=True)
class Size:
    """Pixels of a drawing, and of what surrounds its plot."""

    name: str
    width: int
    height: int
    left: int = 62
    right: int = 16
    top: int = 14
    bottom: int = 46


WIDE, NARROW = Size("wide", 620, 380), Size("narrow", 350, 320, left=56, right=10)


@dataclass(frozen=True)
class Point:
    """A value of a series. ``low``, ``high``: an interval of y; ``text``: in words, as a tooltip has it;
    ``label``: stands beside the point."""

    x: float
    y: float
    text: str
    low: float | None = None
    high: float | None = None
    label: str = ""
    hollow: bool = False


@dataclass(frozen=True)
class Series:
    """Points of one name. ``line``: they are joined; ``steps``: by a stair; ``index``: colour and shape;
    ``marked``: whether points are drawn, or a line alone."""

    name: str
    points: tuple[Point, ...]
    index: int
    line: bool = True
    steps: bool = False
    marked: bool = True


@dataclass(frozen=True)
class Axis:
    title: str
    scale: Scale = "linear"
    words: Callable[[float], str] = lambda value: f"{value:,g}"
    from_zero: bool = False
    bounds: tuple[float, float] | None = None


@dataclass(frozen=True)
class Mark:
    """A point in pixels. ``bar``: the ends of its interval; ``label_at``: where its label begins or ends."""

    x: float
    y: float
    index: int
    text: str
    hollow: bool
    bar: tuple[float, float] | None
    label: str = ""
    label_at: tuple[float, float, str] = (0, 0, "start")


@dataclass(frozen=True)
class Drawing:
    """A chart in pixels. ``lines``: index and corners, as SVG writes them; ticks: place and words."""

    size: Size
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    lines: tuple[tuple[int, str], ...]
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Chart:
    """``summary``: what it shows, for those who do not see it; ``columns``, ``rows``: its figures;
    ``shapes``: whether points are told apart by series."""

    id: str
    title: str
    summary: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    legend: bool = True
    drawings: tuple[Drawing, ...] = field(default=())

    @property
    def point_count(self) -> int:
        return sum(len(it.points) for it in self.series if it.marked)


def drawn(chart: Chart) -> tuple[Drawing, ...]:
    """The chart for a wide page, and for a phone."""
    return tuple(_draw(chart, size) for size in (WIDE, NARROW))


def _draw(chart: Chart, size: Size) -> Drawing:
    points = [point for series in chart.series for point in series.points]
    ends = [end for it in points for end in (it.y, it.low, it.high) if end is not None]
    x_low, x_high = _bounds([point.x for point in points], chart.x)
    y_low, y_high = _bounds(ends, chart.y)
    to_x = _placed(chart.x.scale, x_low, x_high, size.left, size.width - size.right)
    to_y = _placed(chart.y.scale, y_low, y_high, size.height - size.bottom, size.top)
    lines, marks = [], []
    for series in chart.series:
        at = [(to_x(it.x), to_y(it.y)) for it in series.points]
        if series.line and len(at) > 1:
            corners = _stairs(at) if series.steps else at
            lines.append((series.index, " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)))
        if series.marked:
            marks += [
                _mark(series, it, place, to_y, y_low) for it, place in zip(series.points, at, strict=True)
            ]
    return Drawing(
        size,
        tuple((to_x(it), chart.x.words(it)) for it in _ticks(chart.x.scale, x_low, x_high, size.width // 90)),
        tuple((to_y(it), chart.y.words(it)) for it in _ticks(chart.y.scale, y_low, y_high, 6)),
        tuple(lines),
        tuple(_labelled(marks, size)),
    )


def _mark(
    series: Series, point: Point, at: tuple[float, float], to_y: Callable[[float], float], lowest: float
) -> Mark:
    bar = None
    if point.low is not None and point.high is not None:
        bar = (to_y(max(point.low, lowest)), to_y(point.high))
    return Mark(at[0], at[1], series.index, point.text, point.hollow, bar, point.label)


def _stairs(at: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """First along, then down: a file's loss holds until the next one's size."""
    corners = [at[0]]
    for (_, y), (next_x, next_y) in itertools.pairwise(at):
        corners += [(next_x, y), (next_x, next_y)]
    return corners


# --- scales ----------------------------------------------------------------------------------------------


def _bounds(values: Iterable[float], axis: Axis) -> tuple[float, float]:
    """The ends of an axis, a little beyond its values."""
    known = [it for it in values if math.isfinite(it) and (axis.scale == "linear" or it > 0)]
    known += axis.bounds or ()
    low, high = min(known, default=1.0), max(known, default=10.0)
    if axis.scale == "log":
        room = (high / low) ** 0.07 if high > low else 2.0
        return low / room, high * room
    if axis.from_zero:
        return 0.0, high * 1.08 or 1.0
    room = 0.07 * (high - low) or abs(high) * 0.1 or 1.0
    return low - room, high + room


def _placed(scale: Scale, low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """From a value to its place, held within the plot."""

    def at(value: float) -> float:
        if scale == "log":
            share = math.log(max(value, low) / low) / math.log(high / low)
        else:
            share = (value - low) / (high - low)
        return start + min(max(share, 0.0), 1.0) * (end - start)

    return at


def _ticks(scale: Scale, low: float, high: float, most: int) -> list[float]:
    """Round numbers within an axis."""
    if scale == "linear":
        rough = (high - low) / max(most, 2)
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * it for it in (1, 2, 2.5, 5, 10) if power * it >= rough)
        first = math.ceil(low / step - 1e-9)
        return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    within: list[float] = []
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        within = [it * 10.0**n for n in decades for it in digits if low <= it * 10.0**n <= high]
        if len(within) >= 3:
            break
    return within[:: max(1, math.ceil(len(within) / (most + 2)))]


# --- labels ----------------------------------------------------------------------------------------------

_SIDES = ((1, -1, "start"), (1, 1, "start"), (-1, -1, "end"), (-1, 1, "end"), (0, -1, "middle"),
          (0, 1, "middle"))  # fmt: skip
Box = tuple[float, float, float, float]


def _labelled(marks: Sequence[Mark], size: Size) -> list[Mark]:
    """A name at each point where there is room for one, and none where there is not: it is in the table."""
    taken: list[Box] = [(it.x - 5, it.y - 5, it.x + 5, it.y + 5) for it in marks]
    frame = (size.left, size.top, size.width - size.right, size.height - size.bottom)
    made = []
    for mark in marks:
        made.append(_label(mark, taken, frame) if mark.label else mark)
    return made


def _label(mark: Mark, taken: list[Box], frame: Box) -> Mark:
    width = _LETTER * _FONT * len(mark.label)
    for distance, (right, down, anchor) in itertools.product((8, 14, 22), _SIDES):
        x, y = mark.x + distance * right, mark.y + distance * down + _FONT / 3
        start = x - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
        box = (start, y - _FONT, start + width, y + 3)
        inside = box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]
        if inside and not any(_overlap(box, other) for other in taken):
            taken.append(box)
            return Mark(
                mark.x, mark.y, mark.index, mark.text, mark.hollow, mark.bar, mark.label, (x, y, anchor)
            )
    return Mark(mark.x, mark.y, mark.index, mark.text, mark.hollow, mark.bar)


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]

"""Plots of a record: what each preset's bytes buy, and how speed grows with the layers on a GPU.

They are drawn for paper: on white, every line and point told apart by its shape as well as its colour.
"""

from __future__ import annotations

import importlib.util
import io
import itertools
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ggq.errors import GgqError, OutputProblem, UsageProblem
from ggq.measurement.quality_record import QualityMeasurement
from ggq.measurement.record import Entry
from ggq.measurement.speed import SpeedFigure
from ggq.measurement.speed_tests import Point
from ggq.measurement.summary import Row, rows
from ggq.measurement.tables import printable
from ggq.system import files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")

_FONT_POINTS, _SMALL_POINTS = 10, 9
_PANEL_INCHES, _HEIGHT_INCHES = 6.4, 5.0
_DOTS_PER_INCH = 200
_CONFIDENCE = 1.96
# Okabe and Ito's colours, which the colour-blind tell apart too, without the yellow that paper swallows.
_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = "osD^vP*Xhp"
# Where a name stands beside its point: right and up, in steps, and how the text is aligned there.
_Side = tuple[int, int, Literal["left", "center", "right"], Literal["bottom", "center", "top"]]
_SIDES: tuple[_Side, ...] = (
    (1, 1, "left", "bottom"), (-1, -1, "right", "top"), (1, 0, "left", "center"), (-1, 0, "right", "center"),
    (0, 1, "center", "bottom"), (0, -1, "center", "top"), (1, -1, "left", "top"), (-1, 1, "right", "bottom"),
)  # fmt: skip
_DISTANCES_POINTS = (6, 11, 17, 24, 32)
_LINES: Mapping[str, Literal["-", "--"]] = {"prompt": "-", "generation": "--"}


def require(target: Path) -> None:
    """See that a plot could be made, before what it shows is measured.

    Raises UsageProblem for a format that is not in FORMATS, OutputProblem without the folder, GgqError
    without matplotlib.
    """
    suffix = target.suffix.lstrip(".").lower()
    if suffix not in FORMATS:
        raise UsageProblem(
            f"{target.name} names no format of a plot.",
            f"Its suffix is {target.suffix!r}; there are {', '.join(f'.{name}' for name in FORMATS)}.",
            f"Name it {target.stem}.svg, for instance.",
        )
    if not target.parent.is_dir():
        raise OutputProblem(
            f"{target} cannot be written.",
            f"There is no folder {target.parent}.",
            f"mkdir -p {target.parent}",
        )
    if importlib.util.find_spec("matplotlib") is None:
        raise GgqError("Plots are drawn by matplotlib.", "It is not installed.", "pip install 'ggq[plot]'")


def plot(entries: Sequence[Entry], target: Path) -> None:
    """Draw what the entries hold: size against KLD, speed against layers, or both side by side.

    The entries are of one machine; ``target`` ends in a name of FORMATS, and is overwritten. Raises
    UsageProblem when there is nothing to draw, DiskFull, and what ``require`` raises.
    """
    require(target)
    _save(draw(entries), target)


def draw(entries: Sequence[Entry]) -> Figure:
    """The figure that ``plot`` saves. Raises UsageProblem when there is nothing to draw."""
    return _draw([_quality(entries), _offload(entries)])


@dataclass(frozen=True)
class _Panel:
    """``draw`` fills the axes; ``finish``, called once the layout is fixed, what depends on places."""

    draw: Callable[[Axes], None]
    caption: str
    finish: Callable[[Axes], None] = lambda axes: None


def _draw(panels: Sequence[_Panel | None]) -> Figure:
    drawn = [panel for panel in panels if panel is not None]
    if not drawn:
        raise UsageProblem(
            "There is nothing to draw.",
            "No divergence from a 16-bit GGUF was measured, nor speed at several numbers of layers on a GPU.",
            "Measure with `ggq bench quality`, or with `ggq bench speed -ngl sweep`.",
        )
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    width = _PANEL_INCHES * len(drawn)
    with rc_context({"font.size": _FONT_POINTS, "legend.fontsize": _SMALL_POINTS}):
        figure = Figure((width, _HEIGHT_INCHES), dpi=_DOTS_PER_INCH, facecolor="white", layout="constrained")
        axes = figure.subplots(1, len(drawn), squeeze=False)[0]
        for panel, place in zip(drawn, axes, strict=True):
            panel.draw(place)
            place.grid(True, which="major", color="0.88", linewidth=0.6)
            place.set_axisbelow(True)
        letters = int(width * 72 / (0.54 * _SMALL_POINTS))  # of the mean width
        caption = "\n".join(
            line for panel in drawn for line in textwrap.wrap(_literal(panel.caption), letters)
        )
        figure.supxlabel(caption, fontsize=_SMALL_POINTS, x=0.01, ha="left")
        figure.draw_without_rendering()
        for panel, place in zip(drawn, axes, strict=True):
            panel.finish(place)
    return figure


def _save(figure: Figure, target: Path) -> None:
    drawn = io.BytesIO()
    figure.savefig(drawn, format=target.suffix.lstrip(".").lower())
    partial = target.with_name(f".{target.name}{files.STAGING}")
    with files.explain_os_error(target, "name another file for the plot"):
        try:
            partial.write_bytes(drawn.getvalue())
            files.publish(partial, target)
        finally:
            partial.unlink(missing_ok=True)


def _number_log_axis(axes: Axes, words: Callable[[float, int | None], str]) -> None:
    """Numbers up the axis without exponents, which would be set too small, and some within a decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(words))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _literal(text: str) -> str:
    """As it is: matplotlib would take what is between dollars for mathematics."""
    return printable(text).replace("$", r"\$")


# --- size against divergence -----------------------------------------------------------------------------


def _quality(entries: Sequence[Entry]) -> _Panel | None:
    """The files that were measured on one text against one base: of several such grounds, that of most."""
    measured = [(entry, it) for entry in entries if (it := entry.measurements.quality) and it.divergence]
    if not measured:
        return None
    (ground, _), *_ = Counter(_ground(quality) for _, quality in measured).most_common(1)
    shown = [(entry, quality) for entry, quality in measured if _ground(quality) == ground]
    points = [row for row in rows([entry for entry, _ in shown]) if row.mean_kld and row.mean_kld.value > 0]
    unit_bytes, unit = _unit(max((row.file_bytes for row in points), default=0))
    front = [row for row in points if not any(_dominates(other, row) for other in points)]
    others = [row for row in points if row not in front]

    corners = sorted((row.file_bytes / unit_bytes, _kld(row)) for row in front)

    def draw(axes: Axes) -> None:
        axes.set_yscale("log", nonpositive="clip")
        axes.plot(*zip(*corners, strict=True), "-", drawstyle="steps-post", color="0.6", linewidth=1,
                  label="Pareto front")  # fmt: skip
        for group, marker, fill, label in (
            (front, "o", "black", None),
            (others, "s", "white", "another is smaller and closer"),
        ):
            if group:
                axes.errorbar(
                    [row.file_bytes / unit_bytes for row in group],
                    [_kld(row) for row in group],
                    # A bar that reached 0 would have no end on this axis.
                    yerr=[[min(_bar(row), 0.95 * _kld(row)) for row in group], [_bar(row) for row in group]],
                    fmt=marker, markersize=6, color="black", markerfacecolor=fill, elinewidth=1, capsize=3,
                    label=label,
                )  # fmt: skip
        axes.margins(x=0.12, y=0.08)
        _number_log_axis(axes, lambda kld, _place: f"{kld:g}")
        axes.set_xlabel(f"file size, {unit}")
        axes.set_ylabel("mean KLD from the 16-bit GGUF, nats per token (bars: 95 %)")
        axes.set_title("What a preset's bytes buy")
        axes.legend(loc="upper right")

    def finish(axes: Axes) -> None:
        spots = [(row.file_bytes / unit_bytes, _kld(row), row.name) for row in points]
        bars = [((x, kld - min(_bar(row), 0.95 * kld)), (x, kld + _bar(row)))
                for row, (x, kld, _) in zip(points, spots, strict=True)]  # fmt: skip
        steps = [
            line
            for (x, kld), (next_x, next_kld) in itertools.pairwise(corners)
            for line in (((x, kld), (next_x, kld)), ((next_x, kld), (next_x, next_kld)))
        ]
        _label(axes, spots, [*bars, *steps])

    return _Panel(draw, _quality_caption(entries, shown, len(measured) - len(points)), finish)


def _quality_caption(
    entries: Sequence[Entry], shown: Sequence[tuple[Entry, QualityMeasurement]], left_out: int
) -> str:
    chunks = sorted({quality.ground.chunks for _, quality in shown})
    sizes = {entry.model.sha256: f" ({files.human_bytes(entry.model.file_bytes)})" for entry in entries}
    (first, quality), *_ = shown
    ground = quality.ground
    return (
        f"KLD on {ground.text.name}: {' to '.join(map(str, dict.fromkeys((chunks[0], chunks[-1]))))}"
        f" chunks of {ground.context} tokens, against {ground.base.name}"
        f"{sizes.get(ground.base.sha256, '')}, on {first.environment}."
        + (
            f" {left_out} files that were measured otherwise, or agree entirely, are left out."
            if left_out
            else ""
        )
    )


def _ground(quality: QualityMeasurement) -> tuple[str, str, int]:
    return quality.ground.base.sha256, quality.ground.text.sha256, quality.ground.context


def _kld(row: Row) -> float:
    return row.mean_kld.value if row.mean_kld else 0.0


def _bar(row: Row) -> float:
    return _CONFIDENCE * ((row.mean_kld and row.mean_kld.standard_error) or 0.0)


def _dominates(one: Row, other: Row) -> bool:
    """Whether ``one`` is as good in size and KLD, and better in one of them."""
    mine, theirs = ((row.file_bytes, _kld(row)) for row in (one, other))
    return mine != theirs and mine[0] <= theirs[0] and mine[1] <= theirs[1]


def _unit(most_bytes: int) -> tuple[int, str]:
    units = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))
    return next((unit for unit in units if most_bytes >= unit[0]), (1, "B"))


def _label(
    axes: Axes, spots: Sequence[tuple[float, float, str]], lines: Sequence[Sequence[tuple[float, float]]]
) -> None:
    """A name at each point, as near as may be without hiding a point, a line or another name. Lines are
    corners of their extent, like the spots in the axes' own units."""
    from matplotlib.transforms import Bbox

    dots_per_point = axes.figure.dpi / 72
    places = [axes.transData.transform((x, y)) for x, y, _ in spots]
    taken = [Bbox([place, place]).padded(5 * dots_per_point) for place in places]
    taken += [Bbox(axes.transData.transform(line)).padded(dots_per_point) for line in lines]
    legend = axes.get_legend()
    if legend is not None:
        taken.append(legend.get_window_extent())
    frame = axes.get_window_extent()
    for x, y, name in spots:
        note = axes.annotate(
            _literal(name), (x, y), (0, 0), textcoords="offset points", fontsize=_SMALL_POINTS
        )
        note.set_in_layout(False)
        for distance, (right, up, horizontal, vertical) in itertools.product(_DISTANCES_POINTS, _SIDES):
            note.set_position((distance * right, distance * up))
            note.set_horizontalalignment(horizontal)
            note.set_verticalalignment(vertical)
            box = note.get_window_extent()
            inside = frame.x0 < box.x0 and box.x1 < frame.x1 and frame.y0 < box.y0 and box.y1 < frame.y1
            if inside and box.count_overlaps(taken) == 0:
                break
        if distance > _DISTANCES_POINTS[0]:
            leader = {"arrowstyle": "-", "color": "0.4", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4}
            axes.annotate("", (x, y), note.get_position(), textcoords="offset points", arrowprops=leader)
        taken.append(box)


# --- speed against layers --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Series:
    """Of one file and test: by layers the median, and the slowest and the fastest repetition."""

    name: str
    point: Point
    layers: tuple[int, ...]
    medians: tuple[float, ...]
    ranges: tuple[tuple[float, float], ...]


def _offload(entries: Sequence[Entry]) -> _Panel | None:
    series = [one for entry in entries for test in _LINES if (one := _series(entry, test)) is not None]
    if not series:
        return None
    names = list(dict.fromkeys(one.name for one in series))
    looks: dict[str, dict[str, Any]] = {
        name: {"color": colour, "marker": marker}
        for name, colour, marker in zip(names, itertools.cycle(_COLOURS), itertools.cycle(_MARKERS))
    }

    def draw(axes: Axes) -> None:
        from matplotlib.lines import Line2D
        from matplotlib.ticker import MaxNLocator

        axes.set_yscale("log")
        for one in series:
            below = [median - low for median, (low, _) in zip(one.medians, one.ranges, strict=True)]
            above = [high - median for median, (_, high) in zip(one.medians, one.ranges, strict=True)]
            axes.errorbar(
                one.layers, one.medians, yerr=[below, above], linestyle=_LINES[one.point.test], markersize=5,
                linewidth=1.2, elinewidth=0.8, capsize=2, **looks[one.name],
            )  # fmt: skip
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _number_log_axis(axes, lambda rate, _place: f"{rate:,g}")
        axes.set_xlabel("layers on GPUs (-ngl), the output layer counted")
        axes.set_ylabel("tokens/s (bars: slowest to fastest repetition)")
        axes.set_title("Speed by layers on GPUs")
        points = dict.fromkeys(one.point for one in series)
        handles = [Line2D([], [], linestyle="", label=_literal(name), **looks[name]) for name in names]
        handles += [
            Line2D([], [], color="black", linestyle=_LINES[point.test], label=f"{point.test} ({point})")
            for point in points
        ]
        axes.figure.legend(handles=handles, loc="outside right upper")

    devices = dict.fromkeys(
        device for entry in entries for figure in _figures(entry) for device in figure.devices
    )
    machine = entries[0].environment
    return _Panel(draw, f"Layers are on {', '.join(devices)}; the rest on {machine}.")


def _figures(entry: Entry) -> Sequence[SpeedFigure]:
    return entry.measurements.speed.figures if entry.measurements.speed else ()


def _series(entry: Entry, test: str) -> _Series | None:
    """The shallowest figures of a test; None where there are not several numbers of layers."""
    figures = [figure for figure in _figures(entry) if figure.test == test]
    if not figures:
        return None
    shallowest = min(figures, key=lambda figure: (figure.depth_tokens, figure.tokens)).point
    chosen = {figure.n_gpu_layers: figure.speed for figure in figures if figure.point == shallowest}
    if len(chosen) < 2:
        return None
    speeds = [chosen[count] for count in sorted(chosen)]
    return _Series(
        name=entry.model.name,
        point=shallowest,
        layers=tuple(sorted(chosen)),
        medians=tuple(speed.median_tokens_per_s for speed in speeds),
        ranges=tuple((min(it.samples_tokens_per_s), max(it.samples_tokens_per_s)) for it in speeds),
    )

"""Places on a drawing: inside it, in order, and labels that do not lie on each other."""

from __future__ import annotations

import itertools
import random

import pytest

from ggq.publishing.charts import Axis, Chart, Drawing, Point, Scale, Series, drawn


def chart(values: list[tuple[float, float]], scale: Scale = "linear", label: str = "") -> Chart:
    points = tuple(Point(x, y, f"{x}", label=label and f"{label}{n}") for n, (x, y) in enumerate(values))
    series = (Series("one", points, 0),)
    return Chart("c", "t", "s", Axis("x", scale), Axis("y", scale), series, (), ())


def inside(drawing: Drawing, x: float, y: float) -> bool:
    size = drawing.size
    return (
        size.left - 1 <= x <= size.width - size.right + 1
        and size.top - 1 <= y <= size.height - size.bottom + 1
    )


@pytest.mark.parametrize("scale", ["linear", "log"])
@pytest.mark.parametrize(
    "values",
    [[(1, 1)], [(5, 5), (5, 5)], [(1e-6, 1e6), (1e6, 1e-6)], [(0.1, 3), (0.2, 2), (0.3, 1)], [(7, 1e-4)]],
    ids=str,
)
def test_points_and_ticks_are_inside(values: list[tuple[float, float]], scale: Scale) -> None:
    for drawing in drawn(chart(values, scale)):
        assert len(drawing.marks) == len(values)
        assert all(inside(drawing, mark.x, mark.y) for mark in drawing.marks)
        assert drawing.x_ticks and drawing.y_ticks
        assert all(inside(drawing, at, drawing.size.top) for at, _ in drawing.x_ticks)
        assert all(inside(drawing, drawing.size.left, at) for at, _ in drawing.y_ticks)
        assert len(drawing.y_ticks) <= 12


def test_larger_is_to_the_right_and_up() -> None:
    for drawing in drawn(chart([(1, 10), (2, 20), (4, 15)])):
        first, second, third = drawing.marks
        assert first.x < second.x < third.x
        assert first.y > third.y > second.y
        # Places are proportional: 1 to 2 is half of 2 to 4.
        assert (third.x - second.x) == pytest.approx(2 * (second.x - first.x))


def test_a_logarithm_has_equal_steps_for_equal_factors() -> None:
    for drawing in drawn(chart([(1, 1), (10, 10), (100, 100)], "log")):
        first, second, third = drawing.marks
        assert third.x - second.x == pytest.approx(second.x - first.x)
        assert {"1", "10", "100"} <= {words for _, words in drawing.x_ticks}


def test_labels_do_not_lie_on_each_other() -> None:
    chance = random.Random(1)
    values = [(chance.random(), chance.random()) for _ in range(60)]
    for drawing in drawn(chart(values, label="Q4_K_M")):
        boxes = []
        for mark in drawing.marks:
            if not mark.label:
                continue
            x, y, anchor = mark.label_at
            width = 6.0 * len(mark.label)
            left = x - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
            boxes.append((left, y - 9, left + width, y))
        assert len(boxes) > 10
        for one, other in itertools.combinations(boxes, 2):
            apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
            assert apart
